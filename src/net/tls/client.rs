//! TLS towards servers, as `sslmode` wants it.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::verify::{Level, ServerVerifier};
use super::{ALPN, TlsInfo, certificate, provider, read_certificates, read_key, unusable};
use crate::config::model::{ServerAddress, SslMode};
use crate::error::{Error, ErrorKind};
use crate::net::stream::Stream;
use crate::wire::sqlstate::SqlState;

/// TLS settings towards servers, read from their files once and kept. A reload of the files makes a new one; clones share.
#[derive(Clone, Default)]
pub struct ClientTls {
    configs: Arc<Mutex<HashMap<Key, Arc<ClientConfig>>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    level: Level,
    roots: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

impl ClientTls {
    /// Nothing read yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the files that a server's connection string names, if that has not been done: for `check` and for start.
    ///
    /// # Errors
    /// A file that is missing or cannot be used; the error names it.
    pub fn load(&self, address: &ServerAddress) -> Result<(), Error> {
        if address.sslmode == SslMode::Disable || address.is_unix() {
            return Ok(());
        }
        self.config(address).map(|_| ())
    }

    /// Makes a plain TCP stream to that server a TLS one. The caller sets the deadline.
    ///
    /// # Errors
    /// A file that cannot be used, a handshake that failed, or a certificate that `sslmode` does not accept.
    pub async fn connect(&self, address: &ServerAddress, stream: Stream) -> Result<Stream, Error> {
        let config = self.config(address)?;
        let peer = stream.peer();
        let name = match ServerName::try_from(address.host.clone()) {
            Ok(name) => name,
            // Where the name is not looked at, one that is no DNS name (an underscore is fine) need not stop us.
            Err(_) if Level::of(address) != Level::Full => {
                ServerName::from(peer.ip().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)))
            }
            Err(cause) => return Err(failed(address, &cause).cause(cause)),
        };
        let socket =
            stream.into_tcp().ok_or_else(|| Error::internal("TLS was asked for on a stream that is not TCP"))?;
        let connected = Box::pin(TlsConnector::from(config).connect(name, socket)).await;
        let encrypted = connected.map_err(|cause| explain(failed(address, &cause), address, &cause).cause(cause))?;
        let connection = encrypted.get_ref().1;
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        let end_point = leaf.and_then(|leaf| certificate::end_point(leaf)).map(Arc::from);
        let info = TlsInfo { end_point, ..TlsInfo::of(connection) };
        if address.sslnegotiation_direct && !info.alpn {
            return Err(failed(address, &"the server did not agree to \"postgresql\" by ALPN")
                .hint("Servers before PostgreSQL 17 do not know sslnegotiation=direct."));
        }
        Ok(Stream::encrypted(encrypted, peer, info))
    }

    fn config(&self, address: &ServerAddress) -> Result<Arc<ClientConfig>, Error> {
        let level = Level::of(address);
        let key = Key {
            level,
            roots: address.sslrootcert.clone().filter(|_| level != Level::None),
            cert: address.sslcert.clone(),
            key: address.sslkey.clone(),
        };
        let mut configs = self.configs.lock();
        if let Some(config) = configs.get(&key) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(build(&key)?);
        configs.insert(key, Arc::clone(&config));
        Ok(config)
    }
}

fn build(key: &Key) -> Result<ClientConfig, Error> {
    let verifier = match key.level {
        Level::None => ServerVerifier::new(Level::None, RootCertStore::empty(), Vec::new(), provider()),
        level => {
            let (roots, trusted) = authorities(key.roots.as_deref())?;
            ServerVerifier::new(level, roots, trusted, provider())
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|cause| Error::internal("TLS cannot be set up").cause(cause))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&key.cert, &key.key) {
        (Some(cert), Some(key)) => {
            builder.with_client_auth_cert(read_certificates(cert)?, read_key(key)?).map_err(|cause| {
                let why = format!("it does not go with the certificate \"{}\": {cause}", cert.display());
                unusable("private key", key, why).cause(cause)
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The authorities of a file, or the system's; of a file also its certificates themselves, which may be servers' own.
fn authorities(path: Option<&Path>) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), Error> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = path.filter(|path| path.as_os_str() != "system") {
        let trusted = read_certificates(path)?;
        for authority in &trusted {
            roots
                .add(authority.clone())
                .map_err(|cause| unusable("authority", path, cause.to_string()).cause(cause))?;
        }
        return Ok((roots, trusted));
    }
    let found = rustls_native_certs::load_native_certs();
    // System stores hold a few odd certificates; one that cannot be read vouches for nobody.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let message = "the system has no certificate authorities to verify servers with";
        return Err(Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message)
            .hint("Install them (Debian: ca-certificates), or name a file with sslrootcert."));
    }
    Ok((roots, Vec::new()))
}

fn failed(address: &ServerAddress, why: &dyn fmt::Display) -> Error {
    let message = format!("could not establish TLS with server {address}: {why}");
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, message)
}

fn explain(error: Error, address: &ServerAddress, cause: &std::io::Error) -> Error {
    use rustls::CertificateError as Certificate;
    let inner = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let Some(rustls::Error::InvalidCertificate(fault)) = inner else { return error };
    match fault {
        Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => error.hint(format!(
            "The certificate is for another host than \"{}\": connect by a name it has, or use sslmode=verify-ca.",
            address.host
        )),
        Certificate::UnknownIssuer => error.hint("Name the authority that signed the certificate with sslrootcert."),
        _ => error,
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").field("configs", &self.configs.lock().len()).finish()
    }
}
