use super::*;

fn address(host: &str, port: u16) -> ServerAddress {
    ServerAddress {
        host: host.to_owned(),
        port,
        dbname: None,
        user: None,
        password: None,
        sslmode: SslMode::Prefer,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
        sslnegotiation_direct: false,
        channel_binding: ChannelBinding::Prefer,
        application_name: None,
        connect_timeout: None,
    }
}

fn full() -> ServerAddress {
    ServerAddress {
        dbname: Some("app".to_owned()),
        user: Some("me".to_owned()),
        password: Some(Secret::new("p w'd\\")),
        ..address("10.0.0.1", 6543)
    }
}

#[test]
fn both_forms_say_the_same() {
    let table = [
        (r"host=10.0.0.1 port=6543 dbname=app user=me password='p w\'d\\'", full()),
        (r"  host = 10.0.0.1 port=6543	dbname='app' user=me password=p\ w\'d\\ ", full()),
        ("postgres://me:p%20w'd%5c@10.0.0.1:6543/app", full()),
        ("postgresql://10.0.0.1/app?user=me&password=p%20w%27d%5C&port=6543", full()),
        ("", address("localhost", 5432)),
        ("postgres://", address("localhost", 5432)),
        ("postgres://db.example", address("db.example", 5432)),
        ("postgres://[::1]:7000", address("::1", 7000)),
        ("postgres://[fe80::1]", address("fe80::1", 5432)),
        ("host=/run/pg port=7000", address("/run/pg", 7000)),
        ("postgres://%2Frun%2Fpg:7000", address("/run/pg", 7000)),
        ("postgres:///?host=/run/pg&port=7000", address("/run/pg", 7000)),
        ("host=first host=second", address("second", 5432)),
        ("host='' port=''", address("localhost", 5432)),
    ];
    for (text, expected) in table {
        assert_eq!(parse(text), Ok(expected), "{text}");
    }
}

#[test]
fn tls_and_times_are_read() {
    let text = "host=h sslmode=verify-full sslrootcert=ca.pem sslcert=c.pem sslkey=k.pem sslnegotiation=direct \
                channel_binding=require application_name='a b' connect_timeout=7";
    let expected = ServerAddress {
        sslmode: SslMode::VerifyFull,
        sslrootcert: Some("ca.pem".into()),
        sslcert: Some("c.pem".into()),
        sslkey: Some("k.pem".into()),
        sslnegotiation_direct: true,
        channel_binding: ChannelBinding::Require,
        application_name: Some("a b".to_owned()),
        connect_timeout: Some(Duration::from_secs(7)),
        ..address("h", 5432)
    };
    assert_eq!(parse(text), Ok(expected));
    assert_eq!(parse("connect_timeout=0").map(|address| address.connect_timeout), Ok(None));
    assert_eq!(parse("sslrootcert=system").map(|address| address.sslmode), Ok(SslMode::VerifyFull));
    assert_eq!(parse("postgres://h?ssl=true").map(|address| address.sslmode), Ok(SslMode::Require));
}

#[test]
fn faults_name_their_key() {
    let table = [
        ("hsot=a", "\"hsot\"", "did you mean \"host\""),
        ("hostaddr=127.0.0.1", "\"hostaddr\"", "\"host\""),
        ("options=-cx=1", "\"options\"", "ALTER ROLE"),
        ("krbsrvname=x", "\"krbsrvname\"", "supported keys"),
        ("host=a,b", "several servers", "replicas"),
        ("postgres://a,b/db", "several servers", "replicas"),
        ("port=70000", "\"port\"", "1 to 65535"),
        ("port=0", "\"port\"", "1 to 65535"),
        ("sslmode=maybe", "\"sslmode\"", "verify-full"),
        ("channel_binding=x", "\"channel_binding\"", "prefer"),
        ("sslnegotiation=x", "\"sslnegotiation\"", "direct"),
        ("connect_timeout=soon", "\"connect_timeout\"", "seconds"),
        ("sslrootcert=system sslmode=require", "weak sslmode", "verify-full"),
        ("sslnegotiation=direct", "weak sslmode", "require"),
        ("sslcert=a", "sslkey", ""),
        ("sslkey=a", "sslcert", ""),
        ("host", "missing \"=\"", ""),
        ("host='a", "no end", ""),
        ("postgres://h?dbname", "missing \"=\"", ""),
        ("postgres://[::1", "no \"]\"", ""),
        ("postgres://[::1]x", "only a port", ""),
        ("postgres://u:%zz@h", "\"password\"", ""),
        ("postgres://u%00@h", "zero byte", ""),
        ("postgres://u:%ff@h", "not UTF-8", ""),
    ];
    for (text, message, hint) in table {
        let error = parse(text).expect_err(text);
        assert!(error.message.contains(message), "{text}: {error}");
        assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{text}: {error}");
    }
}

#[test]
fn no_error_and_no_description_shows_a_password() {
    for text in [
        "password=hunter2 hsot=a",
        "postgres://u:hunter2%zz@h",
        "password='hunter2",
        "postgres//u:hunter2@h",
        "pg://u:hunter2@h?x=1",
    ] {
        assert!(!parse(text).expect_err(text).to_string().contains("hunter2"), "{text}");
    }
    let address = parse("postgres://u:hunter2@[::1]:7000/app").expect("valid");
    assert_eq!(address.to_string(), "[::1]:7000/app");
    assert!(!format!("{address:?}").contains("hunter2"));
}

#[test]
fn a_unix_socket_is_known_by_its_slash() {
    let address = parse("host=/run/pg port=7").expect("valid");
    assert_eq!(address.unix_path(), Some(PathBuf::from("/run/pg/.s.PGSQL.7")));
    assert_eq!(parse("host=h").expect("valid").unix_path(), None);
}

proptest::proptest! {
    #[test]
    fn any_text_is_an_address_or_an_error(text in ".*", uri in proptest::bool::ANY) {
        let text = if uri { format!("postgres://{text}") } else { text };
        let _ = parse(&text);
    }
}
