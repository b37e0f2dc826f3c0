use proptest::prelude::*;

use super::*;

fn packet(version: u32, rest: &[u8]) -> Bytes {
    Bytes::from([&version.to_be_bytes(), rest].concat())
}

fn message(rest: &[u8]) -> Result<StartupMessage, Error> {
    match read(packet(3 << 16, rest))? {
        StartupPacket::Startup(startup) => Ok(startup),
        other => panic!("not a startup message: {other:?}"),
    }
}

fn refusal(rest: &[u8]) -> String {
    message(rest).expect_err("refused").sqlstate().to_string()
}

#[test]
fn user_database_and_settings_are_read_in_the_order_postgresql_applies_them() {
    let startup =
        message(b"user\0me\0DateStyle\0ISO\0options\0-c DateStyle=SQL --a-b=1\0database\0app\0\0").expect("valid");
    assert_eq!((startup.user.as_str(), startup.database.as_str()), ("me", "app"));
    let settings: Vec<_> = startup.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(settings, [("DateStyle", "SQL"), ("a_b", "1"), ("DateStyle", "ISO")]);
    assert!(!startup.negotiate && startup.replication.is_none());
}

#[test]
fn the_database_is_the_users_name_where_none_is_sent() {
    assert_eq!(message(b"user\0me\0\0").expect("valid").database, "me");
    assert_eq!(message(b"user\0me\0database\0\0\0").expect("valid").database, "me");
    assert_eq!(refusal(b"\0"), "28000");
}

#[test]
fn a_packet_must_end_where_its_fields_end() {
    for rest in
        [&b""[..], b"user", b"user\0", b"user\0me", b"user\0me\0", b"user\0me\0\0x", b"user\0me\0application_name"]
    {
        assert_eq!(refusal(rest), "08P01", "{rest:?}");
    }
    assert_eq!(refusal(b"user\0\xff\0\0"), "22021");
}

#[test]
fn an_application_name_in_another_encoding_keeps_its_ascii() {
    let startup = message(b"user\0me\0application_name\0caf\xe9\0\0").expect("valid");
    assert_eq!(startup.settings, [("application_name".to_owned(), "caf?".to_owned())]);
}

#[test]
fn a_newer_minor_version_and_unknown_options_are_negotiated() {
    let StartupPacket::Startup(newer) = read(packet(3 << 16 | 9999, b"user\0me\0_pq_.x\0\x31\0\0")).expect("valid")
    else {
        panic!("not a startup message")
    };
    assert_eq!((newer.minor, newer.negotiate), (2, true));
    let mut out = BytesMut::new();
    negotiate_protocol_version(&mut out, &newer);
    assert_eq!(&out[..], b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.x\0");

    let StartupPacket::Startup(newest) = read(packet(3 << 16 | 2, b"user\0me\0\0")).expect("valid") else {
        panic!("not a startup message")
    };
    assert_eq!((newest.minor, newest.negotiate), (2, false));
}

#[test]
fn another_major_version_is_refused_in_postgresqls_words() {
    let error = read(packet(2 << 16, b"user\0me\0\0")).expect_err("refused");
    assert_eq!(error.sqlstate().code(), "0A000");
    assert_eq!(error.message(), "unsupported frontend protocol 2.0: server supports 3.0 to 3.2");
    assert!(error.is_fatal());
}

#[test]
fn replication_is_told_from_its_absence() {
    for yes in ["1", "true", "TRUE", "on", "y", "database"] {
        let kind = if yes == "database" { Replication::Logical } else { Replication::Physical };
        assert_eq!(
            message(format!("user\0me\0replication\0{yes}\0\0").as_bytes()).expect(yes).replication,
            Some(kind),
            "{yes}"
        );
    }
    for no in ["0", "false", "off", "n"] {
        assert_eq!(message(format!("user\0me\0replication\0{no}\0\0").as_bytes()).expect(no).replication, None, "{no}");
    }
    assert_eq!(refusal(b"user\0me\0replication\0o\0\0"), "22023");
    assert_eq!(refusal(b"user\0me\0replication\0\0\0"), "22023");
}

#[test]
fn a_cancel_request_takes_a_secret_of_up_to_256_bytes() {
    let request = |secret_len: usize| read(packet(CANCEL_REQUEST, &[&[0, 0, 0, 7][..], &vec![9; secret_len]].concat()));
    for len in [1, 4, 32, 256] {
        let expected = CancelRequest { pid: 7, secret: Bytes::from(vec![9; len]) };
        assert_eq!(request(len).expect("valid"), StartupPacket::Cancel(expected));
    }
    assert!(request(0).is_err() && request(257).is_err());
}

#[test]
fn the_length_holds_at_its_limit_and_fails_one_past_it() {
    let mut at = BytesMut::from(&(4 + limits::STARTUP_PACKET_BYTES as u32).to_be_bytes()[..]);
    at.resize(4 + limits::STARTUP_PACKET_BYTES, 0);
    assert_eq!(cut(&mut at).expect("at the limit").map(|packet| packet.len()), Some(limits::STARTUP_PACKET_BYTES));
    for total in [0, 7, 5 + limits::STARTUP_PACKET_BYTES as u32, u32::MAX] {
        assert!(cut(&mut BytesMut::from(&total.to_be_bytes()[..])).is_err(), "{total}");
    }
    assert!(cut(&mut BytesMut::from(&b"\0\0\0"[..])).expect("not yet").is_none());
    assert!(cut(&mut BytesMut::from(&b"GET / HTTP/1.1"[..])).is_err());
}

#[test]
fn what_is_written_is_what_is_read() {
    let mut out = BytesMut::new();
    ssl_request(&mut out);
    cancel_request(&mut out, -3, b"secret");
    startup_message(&mut out, 0, &[("user", "me"), ("database", "app")]);
    let mut next = || read(cut(&mut out).expect("valid").expect("whole")).expect("readable");
    assert_eq!(next(), StartupPacket::SslRequest);
    assert_eq!(next(), StartupPacket::Cancel(CancelRequest { pid: -3, secret: Bytes::from_static(b"secret") }));
    assert!(matches!(next(), StartupPacket::Startup(startup) if startup.user == "me" && startup.database == "app"));
}

proptest! {
    #[test]
    fn hostile_bytes_are_a_packet_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut buf = BytesMut::from(&bytes[..]);
        if let Ok(Some(packet)) = cut(&mut buf) {
            let _ = read(packet);
        }
        let _ = read(Bytes::from(bytes.clone()));
        let _ = message(&bytes);
    }

    #[test]
    fn hostile_fields_are_a_message_or_an_error(
        fields in proptest::collection::vec("(user|options|replication|_pq_.x|database|[ -~]{0,9}|.{0,9})", 0..20)
    ) {
        let mut bytes = fields.join("\0").into_bytes();
        bytes.extend([0, 0]);
        let _ = message(&bytes);
    }
}
