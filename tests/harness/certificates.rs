//! One authority for all tests of a binary, with a server certificate for `localhost` and 127.0.0.1 and client certificates by name.

use std::path::PathBuf;
use std::sync::OnceLock;

use pgherd::commands::demo::servers::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its key, as PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    pub cert: String,
    pub key: String,
}

/// The authority and the server's certificate.
pub struct Certificates {
    pub ca: String,
    pub server: Pair,
    issuer: Issuer<'static, KeyPair>,
}

/// The certificates that all tests of this binary share.
pub fn certificates() -> &'static Certificates {
    static CERTIFICATES: OnceLock<Certificates> = OnceLock::new();
    CERTIFICATES.get_or_init(Certificates::new)
}

impl Certificates {
    /// A new authority, unknown to everybody else: for stories in which a chain must not hold.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, super::unique("pgherd test authority"));
        let key = KeyPair::generate().expect("key");
        let ca = params.self_signed(&key).expect("authority").pem();
        let issuer = Issuer::new(params, key);
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let server = issue(&issuer, names, "localhost", ExtendedKeyUsagePurpose::ServerAuth);
        Self { ca, server, issuer }
    }

    /// A client certificate whose common name is `user`.
    pub fn client(&self, user: &str) -> Pair {
        issue(&self.issuer, Vec::new(), user, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server certificate for other names.
    pub fn server_for(&self, names: &[&str]) -> Pair {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        issue(&self.issuer, names, "server", ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// What a PostgreSQL server needs.
    pub fn server_files(&self) -> TlsFiles {
        TlsFiles { cert: self.server.cert.clone(), key: self.server.key.clone(), ca: self.ca.clone() }
    }

    /// Paths of `ca.crt`, `server.crt` and `server.key`, for a TOML.
    pub fn paths(&self) -> (PathBuf, PathBuf, PathBuf) {
        (write("ca.crt", &self.ca), write("server.crt", &self.server.cert), write("server.key", &self.server.key))
    }
}

/// Writes a PEM (or anything else) into the ground under a name of its own.
pub fn write(name: &str, text: &str) -> PathBuf {
    let path = super::ground().folder().join(format!("{}-{name}", super::unique("file")));
    std::fs::write(&path, text).expect("write");
    path
}

fn issue(issuer: &Issuer<'static, KeyPair>, names: Vec<String>, common: &str, usage: ExtendedKeyUsagePurpose) -> Pair {
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(DnType::CommonName, common);
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().expect("key");
    let cert = params.signed_by(&key, issuer).expect("certificate").pem();
    Pair { cert, key: key.serialize_pem() }
}
