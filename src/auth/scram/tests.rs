use proptest::prelude::*;

use super::*;
use crate::auth::scram::client::{Binding, Proof, Start};

const CERTIFICATE: &[u8] = b"hash of a certificate";

fn offer(password: &[u8], end_point: Option<&'static [u8]>) -> Offer<'static> {
    Offer { verifier: Arc::new(ScramVerifier::derive(password, b"0123456789abcdef", 16)), end_point }
}

fn mechanism(binding: Binding<'_>) -> &'static [u8] {
    if matches!(binding, Binding::EndPoint(_)) { SCRAM_SHA_256_PLUS.as_bytes() } else { SCRAM_SHA_256.as_bytes() }
}

fn login(offer: Offer<'_>, binding: Binding<'_>, proof: Proof<'_>) -> Result<ScramKeys, ScramError> {
    let start = Start::new(binding);
    let challenge = offer.first(mechanism(binding), start.message().as_bytes())?;
    let answer = start.challenge(challenge.message().as_bytes(), proof)?;
    let proven = challenge.finish(answer.message().as_bytes())?;
    answer.finish(proven.message.as_bytes())?;
    Ok(proven.keys)
}

#[test]
fn the_right_password_logs_in_with_and_without_channel_binding() {
    let password = Proof::Password(b"pencil");
    assert!(login(offer(b"pencil", None), Binding::None, password).is_ok());
    assert!(login(offer(b"pencil", None), Binding::NotOffered, password).is_ok());
    assert!(login(offer(b"pencil", Some(CERTIFICATE)), Binding::None, password).is_ok());
    assert!(login(offer(b"pencil", Some(CERTIFICATE)), Binding::EndPoint(CERTIFICATE), password).is_ok());
}

#[test]
fn the_wrong_password_and_a_mock_user_do_not() {
    let wrong = login(offer(b"pencil", None), Binding::None, Proof::Password(b"Pencil"));
    assert_eq!(wrong, Err(ScramError::WrongProof));
    let mock = Offer { verifier: crate::auth::scram::ScramStore::new().mock("nobody"), end_point: None };
    assert_eq!(login(mock, Binding::None, Proof::Password(b"pencil")), Err(ScramError::WrongProof));
}

#[test]
fn keys_of_a_login_log_in_where_the_verifier_is_the_same() {
    let keys = login(offer(b"pencil", None), Binding::None, Proof::Password(b"pencil")).expect("logged in");
    assert!(login(offer(b"pencil", None), Binding::None, Proof::Keys(&keys)).is_ok());
    let other = Offer { verifier: Arc::new(ScramVerifier::derive(b"pencil", b"other salt", 16)), end_point: None };
    assert_eq!(login(other, Binding::None, Proof::Keys(&keys)), Err(ScramError::OtherVerifier));
}

#[test]
fn someone_in_between_is_seen() {
    let password = Proof::Password(b"pencil");
    let other_certificate = login(offer(b"pencil", Some(CERTIFICATE)), Binding::EndPoint(b"another"), password);
    assert_eq!(other_certificate, Err(ScramError::ChannelBinding));
    let stripped = login(offer(b"pencil", Some(CERTIFICATE)), Binding::NotOffered, password);
    assert_eq!(stripped, Err(ScramError::Downgrade));
}

#[test]
fn a_server_must_prove_itself_and_may_not_burn_our_processor() {
    let start = Start::new(Binding::None);
    let challenge = offer(b"pencil", None).first(b"SCRAM-SHA-256", start.message().as_bytes()).expect("valid");
    let answer = start.challenge(challenge.message().as_bytes(), Proof::Password(b"pencil")).expect("valid");
    assert_eq!(answer.finish(format!("v={}", STANDARD.encode([7; 32])).as_bytes()), Err(ScramError::WrongServer));

    let greedy = |count: u32| {
        let start = Start::new(Binding::None);
        let nonce = start.message().rsplit_once("r=").expect("has a nonce").1.to_owned();
        start.challenge(format!("r={nonce}x,s=c2FsdA==,i={count}").as_bytes(), Proof::Password(b"p")).map(|_| ())
    };
    assert_eq!(greedy(super::super::MAX_ITERATIONS), Ok(()));
    assert_eq!(greedy(super::super::MAX_ITERATIONS + 1), Err(ScramError::TooManyIterations));
    assert!(greedy(0).is_err());
}

#[test]
fn first_messages_that_the_rfc_forbids_are_refused() {
    let first = |mechanism: &[u8], message: &str| {
        offer(b"p", Some(CERTIFICATE)).first(mechanism, message.as_bytes()).map(|_| ())
    };
    assert_eq!(first(b"SCRAM-SHA-256", "n,,n=,r=abc"), Ok(()));
    assert_eq!(first(b"SCRAM-SHA-256", "n,a=root,n=,r=abc"), Err(ScramError::AuthorizationIdentity));
    let table = [
        (&b"SCRAM-SHA-1"[..], "n,,n=,r=abc"),
        (b"SCRAM-SHA-256-PLUS", "n,,n=,r=abc"),
        (b"SCRAM-SHA-256", "p=tls-server-end-point,,n=,r=abc"),
        (b"SCRAM-SHA-256-PLUS", "p=tls-unique,,n=,r=abc"),
        (b"SCRAM-SHA-256", "n,,m=x,n=,r=abc"),
        (b"SCRAM-SHA-256", "n,,n="),
        (b"SCRAM-SHA-256", "n,,n=,r="),
        (b"SCRAM-SHA-256", "n,,n=,r=a b"),
        (b"SCRAM-SHA-256", "n"),
        (b"SCRAM-SHA-256", ""),
    ];
    for (mechanism, message) in table {
        assert!(matches!(first(mechanism, message), Err(ScramError::Malformed(_))), "{message}");
    }
}

#[test]
fn our_server_serves_postgres_protocols_client() {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    for binding in [None, Some(CERTIFICATE)] {
        let theirs = binding
            .map_or_else(ChannelBinding::unsupported, |hash| ChannelBinding::tls_server_end_point(hash.to_vec()));
        let mut client = ScramSha256::new(b"pencil", theirs);
        let name = if binding.is_some() { SCRAM_SHA_256_PLUS } else { SCRAM_SHA_256 };
        let challenge = offer(b"pencil", binding).first(name.as_bytes(), client.message()).expect("first");
        client.update(challenge.message().as_bytes()).expect("challenge");
        let proven = challenge.finish(client.message()).expect("proof");
        client.finish(proven.message.as_bytes()).expect("our proof");
    }
}

proptest! {
    #[test]
    fn hostile_messages_are_errors(first in ".{0,60}", last in ".{0,60}", proof in "c=biws,r=[ -~]{0,40},p=[ -~]{0,48}") {
        let challenge = || offer(b"p", None).first(b"SCRAM-SHA-256", b"n,,n=,r=abc").expect("valid");
        let _ = offer(b"p", Some(CERTIFICATE)).first(b"SCRAM-SHA-256", first.as_bytes());
        prop_assert!(challenge().finish(last.as_bytes()).is_err());
        prop_assert!(challenge().finish(proof.as_bytes()).is_err());
        prop_assert!(Start::new(Binding::None).challenge(last.as_bytes(), Proof::Password(b"p")).is_err());
    }
}
