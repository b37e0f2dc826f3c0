//! We log in on real PostgreSQL servers, by every method and in every sslmode, and cancel what runs there.

use std::time::Duration;

use pgherd::auth::scram::ScramKeys;
use pgherd::backend::cancel;
use pgherd::backend::connect::{Connected, Login, connect};
use pgherd::commands::demo::servers::PostgresServer;
use pgherd::config::dsn;
use pgherd::config::model::{Secret, ServerAddress};
use pgherd::error::{Error, ErrorKind};
use pgherd::net::framed::read_frame;
use pgherd::net::tls::ClientTls;
use pgherd::wire::backend::{ErrorFields, ServerError};
use pgherd::wire::writer;
use tokio::io::AsyncWriteExt;

use super::front::Front;
use crate::harness::certificates::{Certificates, write};
use crate::harness::wire::Message;
use crate::harness::{self, certificates, fresh_database, fresh_role, options, primary};

fn login() -> Login {
    Login {
        user: "postgres".to_owned(),
        password: None,
        scram_keys: None,
        startup: Vec::new(),
        database: "postgres".to_owned(),
        connect_timeout: Duration::from_secs(20),
        tls: ClientTls::new(),
    }
}

fn address(text: &str) -> ServerAddress {
    dsn::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Logs in on the shared server.
async fn log_in(rest: &str) -> Result<Connected, Error> {
    connect(&address(&format!("host=127.0.0.1 port={} {rest}", primary().port())), &login()).await
}

/// The first value that a query brings.
async fn ask(connected: &mut Connected, query: &str) -> String {
    let mut out = bytes::BytesMut::new();
    writer::query(&mut out, query.as_bytes());
    connected.stream.write_all_buf(&mut out).await.expect("sent");
    let mut value = None;
    loop {
        let frame =
            read_frame(&mut connected.stream, &mut connected.inbuf, 100_000).await.expect("read").expect("open");
        match frame.tag() {
            b'D' => value = Message { tag: b'D', body: frame.body().to_vec() }.values().remove(0),
            b'E' => panic!("{query}: {}", ErrorFields::parse(frame.body()).expect("valid").message()),
            b'Z' => return value.expect("a value"),
            _ => {}
        }
    }
}

fn server_code(error: &Error) -> Option<String> {
    use std::error::Error as _;
    error.source()?.downcast_ref::<ServerError>().map(|server| server.code.clone())
}

#[tokio::test]
async fn every_password_method_logs_in_and_a_wrong_password_is_the_servers_word() {
    for group in ["scram", "md5", "cleartext"] {
        let role = fresh_role(group).await;
        let mut connected = log_in(&format!("user={role} password=secret dbname=postgres")).await.expect(group);
        assert_eq!(ask(&mut connected, "select current_user").await, role);
        assert_eq!((connected.user.as_str(), connected.minor), (role.as_str(), 0));
        assert!(connected.pid > 0 && connected.secret.len() == 4);
        let reported = |name: &str| connected.parameters.iter().any(|(reported, _)| reported == name);
        assert!(reported("server_version") && reported("TimeZone") && reported("integer_datetimes"));

        let error = log_in(&format!("user={role} password=wrong")).await.expect_err(group);
        assert_eq!(error.kind(), ErrorKind::Backend);
        assert_eq!(server_code(&error).as_deref(), Some("28P01"));
        assert!(error.message().contains(&role) && error.message().contains("127.0.0.1"), "{error}");
        assert!(
            error.detail_text().is_some_and(|detail| detail.contains("password authentication failed")),
            "{error:?}"
        );

        let error = log_in(&format!("user={role}")).await.expect_err("no password at all");
        assert!(error.message().contains("none is configured") && error.hint_text().is_some(), "{error}");
    }
}

#[tokio::test]
async fn the_callers_identity_is_used_where_the_string_has_none() {
    let (role, database) = (fresh_role("scram").await, fresh_database().await);
    let address = address(&format!("host=127.0.0.1 port={}", primary().port()));
    let login =
        Login { user: role.clone(), password: Some(Secret::new("secret")), database: database.name.clone(), ..login() };
    let mut connected = connect(&address, &login).await.expect("logged in");
    let query = "select current_user || ' ' || current_database() || ' ' || current_setting('application_name')";
    assert_eq!(ask(&mut connected, query).await, format!("{role} {} ", database.name));
}

#[tokio::test]
async fn nothing_but_the_name_is_set_at_login() {
    let mut connected = log_in("application_name=mine").await.expect("logged in");
    let query = "select string_agg(name, ' ' order by name) from pg_settings where source = 'client'";
    assert_eq!(ask(&mut connected, query).await, "application_name");
}

#[tokio::test]
async fn a_login_needs_no_password_where_the_clients_keys_fit() {
    let role = fresh_role("scram").await;
    let stored = format!("select rolpassword from pg_authid where rolname = '{role}'");
    let stored = primary().sql("postgres", &stored).expect("read")[0][0].clone().expect("a secret");
    let verifier = pgherd::auth::scram::ScramVerifier::parse(&stored).expect("valid");
    let keys = ScramKeys::derive(b"secret", &verifier.salt, verifier.iterations);
    let address = address(&format!("host=127.0.0.1 port={}", primary().port()));
    let with = |keys: ScramKeys, user: &str| Login { user: user.to_owned(), scram_keys: Some(keys.into()), ..login() };
    assert!(connect(&address, &with(keys, &role)).await.is_ok());

    let others = ScramKeys::derive(b"secret", b"another salt", 4096);
    let error = connect(&address, &with(others, &role)).await.expect_err("another salt");
    assert!(error.message().contains("another salt") && error.hint_text().is_some(), "{error}");
}

#[tokio::test]
async fn each_sslmode_encrypts_and_verifies_as_far_as_it_says() {
    let ca = write("ca.crt", &certificates().ca).display().to_string();
    let stranger = write("stranger.crt", &Certificates::new().ca).display().to_string();
    // The shared server's certificate is for `localhost` and 127.0.0.1.
    let table = [
        ("host=127.0.0.1 sslmode=disable", Ok("f")),
        ("host=127.0.0.1 sslmode=allow", Ok("f")),
        ("host=127.0.0.1 sslmode=prefer", Ok("t")),
        ("host=127.0.0.1 sslmode=require", Ok("t")),
        (&format!("host=127.0.0.1 sslmode=require sslrootcert={stranger}"), Err("UnknownIssuer")),
        (&format!("host=127.0.0.1 sslmode=verify-ca sslrootcert={ca}"), Ok("t")),
        (&format!("host=127.0.0.1 sslmode=verify-ca sslrootcert={stranger}"), Err("UnknownIssuer")),
        (&format!("host=127.0.0.1 sslmode=verify-full sslrootcert={ca}"), Ok("t")),
        (&format!("host=localhost sslmode=verify-full sslrootcert={ca}"), Ok("t")),
        (&format!("host=localhost sslmode=verify-full sslrootcert={stranger}"), Err("UnknownIssuer")),
        ("host=127.0.0.1 sslmode=verify-full sslrootcert=/nowhere/ca.crt", Err("/nowhere/ca.crt")),
    ];
    for (text, wanted) in table {
        let result = connect(&address(&format!("{text} port={}", primary().port())), &login()).await;
        match (result, wanted) {
            (Ok(mut connected), Ok(ssl)) => {
                let seen = ask(&mut connected, "select ssl::text from pg_stat_ssl where pid = pg_backend_pid()").await;
                assert_eq!(&seen[..1], ssl, "{text}");
            }
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{text}: {error}"),
            (result, _) => panic!("{text}: {result:?}"),
        }
    }
}

/// A server of the test's own whose certificate is that one.
fn with_certificate(pair: &harness::certificates::Pair) -> PostgresServer {
    let mut files = certificates().server_files();
    (files.cert, files.key) = (pair.cert.clone(), pair.key.clone());
    harness::start(&options().tls(files))
}

#[tokio::test]
async fn a_certificate_for_another_host_passes_verify_ca_only() {
    let server = with_certificate(&certificates().server_for(&["db.example"]));
    let ca = write("ca.crt", &certificates().ca);
    let mode = |mode: &str| {
        address(&format!("host=localhost port={} sslmode={mode} sslrootcert={}", server.port(), ca.display()))
    };
    assert!(connect(&mode("verify-ca"), &login()).await.is_ok());
    let error = connect(&mode("verify-full"), &login()).await.expect_err("another host");
    assert!(
        error.hint_text().is_some_and(|hint| hint.contains("localhost") && hint.contains("verify-ca")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_certificate_that_names_its_host_in_the_old_way_or_signs_itself_passes_as_with_libpq() {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "localhost");
    let key = rcgen::KeyPair::generate().expect("key");
    let pair =
        harness::certificates::Pair { cert: params.self_signed(&key).expect("signed").pem(), key: key.serialize_pem() };
    let server = with_certificate(&pair);
    let own = write("own.crt", &pair.cert);
    let host = |host: &str| {
        address(&format!("host={host} port={} sslmode=verify-full sslrootcert={}", server.port(), own.display()))
    };
    assert!(connect(&host("localhost"), &login()).await.is_ok());
    assert!(connect(&host("127.0.0.1"), &login()).await.is_err(), "the name is another");
}

#[tokio::test]
async fn a_server_without_tls_is_taken_by_prefer_and_not_by_require() {
    let server = harness::start(&pgherd::commands::demo::servers::PostgresOptions::default());
    let mode = |mode: &str| address(&format!("host=127.0.0.1 port={} sslmode={mode}", server.port()));
    assert!(connect(&mode("prefer"), &login()).await.expect("in the clear").stream.tls_info().is_none());
    for strict in ["require", "verify-ca", "verify-full"] {
        // The system's authorities may be missing on this machine; the server's refusal comes before they are read.
        let error = connect(&mode(strict), &login()).await.expect_err(strict);
        assert!(error.message().contains("does not support TLS"), "{strict}: {error}");
    }
}

#[tokio::test]
async fn allow_tries_tls_when_the_server_insists_and_a_certificate_proves_who_we_are() {
    let role = fresh_role("cert").await;
    let pair = certificates().client(&role);
    let (cert, key) = (write("client.crt", &pair.cert), write("client.key", &pair.key));
    let files = format!("sslcert={} sslkey={}", cert.display(), key.display());
    // pg_hba.conf rejects this role without TLS.
    let mut connected = log_in(&format!("user={role} dbname=postgres sslmode=allow {files}")).await.expect("by TLS");
    assert!(connected.stream.tls_info().is_some());
    assert_eq!(ask(&mut connected, "select current_user").await, role);
    let error = log_in(&format!("user={role} dbname=postgres sslmode=disable")).await.expect_err("rejected");
    assert_eq!(server_code(&error).as_deref(), Some("28000"));
    assert!(log_in(&format!("user={role} dbname=postgres sslmode=require")).await.is_err(), "no certificate was shown");
}

#[tokio::test]
async fn channel_binding_is_used_and_demanded() {
    let role = fresh_role("scram").await;
    let rest = |rest: &str| format!("user={role} password=secret dbname=postgres {rest}");
    assert!(log_in(&rest("sslmode=require channel_binding=require")).await.is_ok());
    assert!(log_in(&rest("sslmode=require channel_binding=disable")).await.is_ok());
    let error = log_in(&rest("sslmode=disable channel_binding=require")).await.expect_err("nothing to bind");
    assert!(error.message().contains("channel_binding=require"), "{error}");
    for group in ["md5", "cleartext"] {
        let role = fresh_role(group).await;
        let rest = format!("user={role} password=secret sslmode=require channel_binding=require");
        assert!(log_in(&rest).await.expect_err(group).message().contains("channel_binding=require"));
    }
    let error =
        log_in("user=postgres sslmode=require channel_binding=require").await.expect_err("trust proves nothing");
    assert!(error.message().contains("no proof at all"), "{error}");
}

#[tokio::test]
async fn a_unix_socket_is_a_server_too() {
    let text = format!("host={} port={} sslmode=require", primary().socket_folder().display(), primary().port());
    let mut connected = connect(&address(&text), &login()).await.expect("logged in");
    assert!(connected.stream.is_unix());
    assert_eq!(ask(&mut connected, "select 42").await, "42");
}

#[tokio::test]
async fn direct_tls_needs_no_sslrequest() {
    let front = Front::start().await;
    let ca = write("ca.crt", &certificates().ca);
    let text = |port: u16| {
        address(&format!(
            "host=localhost port={port} user=sam password=secret dbname=app sslmode=verify-full sslrootcert={} \
             sslnegotiation=direct channel_binding=require connect_timeout=20",
            ca.display()
        ))
    };
    let mut connected = connect(&text(front.port), &login()).await.expect("by direct TLS");
    assert!(connected.stream.tls_info().is_some_and(|info| info.alpn));
    assert_eq!(ask(&mut connected, "who").await, "sam");
    assert!(connect(&text(primary().port()), &login()).await.is_err(), "PostgreSQL 15 does not know direct TLS");
}

#[tokio::test]
async fn what_a_server_refuses_keeps_its_sqlstate_and_gets_a_hint() {
    let error = log_in("dbname=nowhere").await.expect_err("no such database");
    assert_eq!(error.sqlstate().code(), "3D000");
    assert!(error.hint_text().is_some_and(|hint| hint.contains("dbname")), "{error:?}");
    let nobody = address("host=127.0.0.1 port=1");
    let error = connect(&nobody, &login()).await.expect_err("nobody listens");
    assert!(error.message().contains("127.0.0.1:1") && error.hint_text().is_some(), "{error}");
}

#[tokio::test]
async fn a_cancel_reaches_the_statement_it_is_meant_for() {
    for mode in ["disable", "require"] {
        let mut connected = log_in(&format!("dbname=postgres sslmode={mode}")).await.expect("logged in");
        let mut out = bytes::BytesMut::new();
        writer::query(&mut out, b"select pg_sleep(60)");
        connected.stream.write_all_buf(&mut out).await.expect("sent");
        let observer = harness::connect(&primary().conninfo("postgres")).await;
        let running = format!("select 1 from pg_stat_activity where pid = {} and state = 'active'", connected.pid);
        harness::eventually(Duration::from_secs(20), "the query runs", async || {
            !observer.query(&running, &[]).await.expect("query").is_empty()
        })
        .await;

        let server = address(&format!("host=127.0.0.1 port={} sslmode={mode}", primary().port()));
        let limit = Duration::from_secs(20);
        cancel::send(&server, &ClientTls::new(), connected.pid, b"nope", limit).await.expect("sent, and ignored");
        assert!(!observer.query(&running, &[]).await.expect("query").is_empty(), "a wrong secret cancels nothing");
        cancel::send(&server, &ClientTls::new(), connected.pid, &connected.secret, limit).await.expect("sent");
        let frame = loop {
            let frame =
                read_frame(&mut connected.stream, &mut connected.inbuf, 10_000).await.expect("read").expect("open");
            if frame.tag() == b'E' {
                break frame;
            }
        };
        assert_eq!(ErrorFields::parse(frame.body()).expect("valid").code(), "57014");
    }
}
