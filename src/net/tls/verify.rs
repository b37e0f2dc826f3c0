//! How far a server's certificate is looked at: libpq's `sslmode` as a rustls verifier (PostgreSQL manual, 34.19.1).

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate;
use crate::config::model::{ServerAddress, SslMode};

/// What must hold of a server's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Level {
    /// Nothing but that the server has its key.
    None,
    /// That an authority signed it.
    Chain,
    /// That an authority signed it for this host.
    Full,
}

impl Level {
    /// `require` with authorities given verifies the chain, as libpq does for the sake of old configurations.
    pub(super) fn of(address: &ServerAddress) -> Self {
        match address.sslmode {
            SslMode::VerifyFull => Self::Full,
            SslMode::VerifyCa => Self::Chain,
            SslMode::Require if address.sslrootcert.is_some() => Self::Chain,
            SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => Self::None,
        }
    }
}

#[derive(Debug)]
pub(super) struct ServerVerifier {
    level: Level,
    roots: RootCertStore,
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerVerifier {
    pub(super) fn new(
        level: Level,
        roots: RootCertStore,
        trusted: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Self {
        Self { level, roots, trusted, provider }
    }

    fn verify_chain(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> Result<(), Error> {
        // A self-signed server certificate named as sslrootcert is trusted itself; webpki wants an authority above it.
        if self.trusted.iter().any(|trusted| trusted == leaf) {
            let valid = certificate::is_valid_at(leaf, now.as_secs());
            return if valid { Ok(()) } else { Err(CertificateError::Expired.into()) };
        }
        let algorithms = self.provider.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, rest, now, algorithms)
    }
}

fn verify_name(leaf: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let by_alternative_names = ParsedCertificate::try_from(leaf).and_then(|leaf| verify_server_name(&leaf, name));
    let Err(error) = by_alternative_names else { return Ok(()) };
    // Certificates made by the recipe of PostgreSQL's manual have a common name alone, which libpq accepts.
    let common_name = certificate::common_name(leaf).filter(|_| certificate::names_by_common_name_only(leaf));
    match common_name {
        Some(common_name) if matches_name(&common_name, &name.to_str()) => Ok(()),
        _ => Err(error),
    }
}

/// libpq's rule: equal but for case, or `*.` for exactly one label more.
fn matches_name(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        _ if is_address => false,
        (Some(parent), Some((label, rest))) => !label.is_empty() && parent.eq_ignore_ascii_case(rest),
        _ => false,
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.level != Level::None {
            self.verify_chain(end_entity, intermediates, now)?;
        }
        if self.level == Level::Full {
            verify_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::dsn;

    #[test]
    fn each_sslmode_looks_as_far_as_libpqs() {
        let table = [
            ("sslmode=prefer", Level::None),
            ("sslmode=require", Level::None),
            ("sslmode=require sslrootcert=ca.pem", Level::Chain),
            ("sslmode=verify-ca", Level::Chain),
            ("sslmode=verify-full", Level::Full),
            ("sslrootcert=system", Level::Full),
        ];
        for (text, level) in table {
            assert_eq!(Level::of(&dsn::parse(text).expect(text)), level, "{text}");
        }
    }

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, host) in [("db.example", "DB.example"), ("*.example", "db.example"), ("10.0.0.1", "10.0.0.1")] {
            assert!(matches_name(pattern, host), "{pattern} {host}");
        }
        for (pattern, host) in [
            ("*.example", "a.b.example"),
            ("*.example", ".example"),
            ("*.example", "example"),
            ("*", "a"),
            ("*.0.0.1", "10.0.0.1"),
        ] {
            assert!(!matches_name(pattern, host), "{pattern} {host}");
        }
    }
}
