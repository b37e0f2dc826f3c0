//! What pgherd reads from X.509 certificates.

use ring::digest;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// The certificate's hash for `tls-server-end-point` (RFC 5929, 4.1): by the hash of its signature, SHA-256 where that is MD5 or SHA-1.
///
/// `None` where the signature names no single hash (Ed25519), for which the binding is not defined.
pub(super) fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let signature = &certificate.signature_algorithm;
    let algorithm = match SignatureAlgorithm::try_from(signature) {
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => hash_by_oid(&parameters.hash_algorithm_oid().to_id_string())?,
        _ => hash_by_signature_oid(&signature.algorithm.to_id_string())?,
    };
    Some(digest::digest(algorithm, der).as_ref().to_vec())
}

fn hash_by_signature_oid(oid: &str) -> Option<&'static digest::Algorithm> {
    match oid {
        // {md5,sha1,sha256}WithRSAEncryption, ecdsa-with-{SHA1,SHA256}
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Some(&digest::SHA256),
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Some(&digest::SHA256),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(&digest::SHA384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(&digest::SHA512),
        _ => None,
    }
}

fn hash_by_oid(oid: &str) -> Option<&'static digest::Algorithm> {
    match oid {
        // md5, sha1, sha256
        "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(&digest::SHA256),
        "2.16.840.1.101.3.4.2.2" => Some(&digest::SHA384),
        "2.16.840.1.101.3.4.2.3" => Some(&digest::SHA512),
        _ => None,
    }
}

/// The subject's common name, if it has exactly one and no zero byte in it.
pub(super) fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    (names.next().is_none() && !name.contains('\0')).then(|| name.to_owned())
}

/// Whether the certificate carries no name of a host or address but its common name, as old ones do.
pub(super) fn names_by_common_name_only(der: &[u8]) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    !certificate.extensions().iter().any(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => {
            names.general_names.iter().any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
        }
        _ => false,
    })
}

/// Whether the certificate's time has come and is not over.
pub(super) fn is_valid_at(der: &[u8], unix_seconds: u64) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let now = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    fn certificate(names: &[&str], common_name: &str, algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut parameters = CertificateParams::new(names).expect("valid");
        parameters.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate_for(algorithm).expect("made");
        parameters.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn the_end_point_hash_follows_the_signatures_hash() {
        let length = |algorithm| end_point(&certificate(&[], "me", algorithm)).map(|hash| hash.len());
        assert_eq!(length(&PKCS_ECDSA_P256_SHA256), Some(32));
        assert_eq!(length(&PKCS_ECDSA_P384_SHA384), Some(48));
        assert_eq!(length(&PKCS_ED25519), None);
        assert_eq!(end_point(b"no certificate"), None);
    }

    #[test]
    fn names_are_read() {
        let named = certificate(&["db.example"], "me", &PKCS_ECDSA_P256_SHA256);
        assert_eq!(common_name(&named).as_deref(), Some("me"));
        assert!(!names_by_common_name_only(&named));
        assert!(names_by_common_name_only(&certificate(&[], "db.example", &PKCS_ECDSA_P256_SHA256)));
    }

    #[test]
    fn validity_has_two_ends() {
        let der = certificate(&[], "me", &PKCS_ECDSA_P256_SHA256);
        // rcgen's default is 1975 to 4096.
        assert!(is_valid_at(&der, 1_800_000_000));
        assert!(!is_valid_at(&der, 0) && !is_valid_at(&der, u64::MAX));
    }
}
