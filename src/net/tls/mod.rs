//! TLS on both sides, by rustls with ring: who we are, whom we trust, and what was agreed.

mod certificate;
mod client;
mod server;
mod verify;

pub use client::ClientTls;
pub use server::ServerTls;

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// The protocol that PostgreSQL names in ALPN.
pub const ALPN: &[u8] = b"postgresql";

/// What TLS agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The hash of the server's certificate for SCRAM's `tls-server-end-point` (RFC 5929, section 4), where it is defined.
    pub end_point: Option<Arc<[u8]>>,
    /// The common name in the client's certificate, if the client sent one that the authorities vouch for.
    pub client_common_name: Option<String>,
    /// Whether the client sent such a certificate.
    pub client_verified: bool,
    /// Whether ALPN chose `postgresql`.
    pub alpn: bool,
}

impl TlsInfo {
    fn of(connection: &rustls::CommonState) -> Self {
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLS",
        };
        let alpn = connection.alpn_protocol() == Some(ALPN);
        Self { version, end_point: None, client_common_name: None, client_verified: false, alpn }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unusable("certificate", path, "it holds no certificate in PEM form".to_owned())),
        Err(error) => Err(unusable("certificate", path, pem_fault(&error))),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        let encrypted = std::fs::read(path).is_ok_and(|text| text.windows(9).any(|window| window == b"ENCRYPTED"));
        let unusable = unusable("private key", path, pem_fault(&error));
        if encrypted { unusable.hint("It is encrypted: write it without a passphrase.") } else { unusable }
    })
}

fn pem_fault(error: &PemError) -> String {
    match error {
        PemError::Io(error) => error.to_string(),
        PemError::NoItemsFound => "it holds nothing of the kind in PEM form".to_owned(),
        other => other.to_string(),
    }
}

/// A file of the configuration that cannot be used, named.
fn unusable(what: &str, path: &Path, why: String) -> Error {
    let message = format!("cannot use TLS {what} \"{}\": {why}", path.display());
    Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message)
}
