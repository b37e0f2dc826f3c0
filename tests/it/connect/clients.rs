//! psql and tokio-postgres log in on us, by every method, with TLS and without.

use std::process::{Command, Output};

use pgherd::wire::startup;
use tokio_postgres::SimpleQueryMessage;

use super::front::{Front, Outcome};
use crate::harness::certificates::{Pair, write};
use crate::harness::tls::Tls;
use crate::harness::wire::WireClient;
use crate::harness::{certificates, try_connect};

/// Runs psql off the runtime: `user|database|tls` on success, its words on failure.
async fn psql(conninfo: String) -> Result<String, String> {
    let run = move || {
        Command::new("psql")
            .args(["-X", "-w", "-A", "-t", "-c", "who", &conninfo])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("PGCONNECT_TIMEOUT", "20")
            .output()
    };
    let Output { status, stdout, stderr } = tokio::task::spawn_blocking(run).await.expect("ran").expect("psql");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_owned();
    if status.success() { Ok(text(stdout)) } else { Err(text(stderr)) }
}

async fn who(client: &tokio_postgres::Client) -> Vec<String> {
    let messages = client.simple_query("who").await.expect("answered");
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.expect("a row");
    (0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn psql_logs_in_by_every_password_method() {
    let front = Front::start().await;
    let table = [
        ("sam", "sslmode=disable", "none"),
        ("sam", "sslmode=require", "TLSv1.3"),
        ("sam", "sslmode=require channel_binding=require", "TLSv1.3"),
        ("sam", "sslmode=require channel_binding=disable", "TLSv1.3"),
        ("sam", "sslmode=require ssl_max_protocol_version=TLSv1.2 channel_binding=require", "TLSv1.2"),
        ("stored", "sslmode=require channel_binding=require", "TLSv1.3"),
        ("stored", "sslmode=disable", "none"),
        ("mia", "sslmode=disable", "none"),
        ("mia", "sslmode=prefer", "TLSv1.3"),
        ("clara", "sslmode=require", "TLSv1.3"),
        ("tom", "sslmode=disable", "none"),
    ];
    for (user, rest, tls) in table {
        let answer = psql(front.conninfo(user, &format!("password=secret {rest}"))).await;
        assert_eq!(answer, Ok(format!("{user}|app|{tls}")), "{user} {rest}");
    }
}

#[tokio::test]
async fn psql_checks_our_certificate_as_far_as_it_wants() {
    let front = Front::start().await;
    let ca = write("ca.crt", &certificates().ca);
    let stranger = write("stranger.crt", &crate::harness::certificates::Certificates::new().ca);
    let conninfo = |mode: &str, ca: &std::path::Path| {
        front.conninfo("sam", &format!("password=secret sslmode={mode} sslrootcert={}", ca.display()))
    };
    assert_eq!(psql(conninfo("verify-full", &ca)).await, Ok("sam|app|TLSv1.3".to_owned()));
    let error = psql(conninfo("verify-ca", &stranger)).await.expect_err("an unknown authority");
    assert!(error.contains("certificate verify failed"), "{error}");
}

#[tokio::test]
async fn wrong_passwords_and_unknown_users_get_the_same_words() {
    let front = Front::start().await;
    for (user, rest) in [
        ("sam", "sslmode=disable"),
        ("sam", "sslmode=require"),
        ("nobody", "sslmode=disable"),
        ("nobody", "sslmode=require"),
        ("stored", "sslmode=disable"),
        ("mia", "sslmode=disable"),
        ("clara", "sslmode=require"),
    ] {
        let error = psql(front.conninfo(user, &format!("password=wrong {rest}"))).await.expect_err(user);
        let wanted = format!("FATAL:  password authentication failed for user \"{user}\"");
        assert!(error.ends_with(&wanted), "{user}: {error}");
    }
}

#[tokio::test]
async fn a_cleartext_password_is_never_asked_for_without_tls() {
    let mut front = Front::start().await;
    let error = psql(front.conninfo("clara", "password=secret sslmode=disable")).await.expect_err("refused");
    assert!(error.contains("requires TLS"), "{error}");
    assert_eq!(front.refusal().await.sqlstate().code(), "28000");
}

#[tokio::test]
async fn a_client_certificate_lets_in_whom_it_names() {
    let front = Front::start().await;
    let conninfo = |user: &str, pair: Option<&Pair>| {
        let files = pair.map_or(String::new(), |pair| {
            let (cert, key) = (write("client.crt", &pair.cert), write("client.key", &pair.key));
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("chmod");
            format!("sslcert={} sslkey={}", cert.display(), key.display())
        });
        front.conninfo(user, &format!("sslmode=require {files}"))
    };
    let carl = certificates().client("carl");
    assert_eq!(psql(conninfo("carl", Some(&carl))).await, Ok("carl|app|TLSv1.3".to_owned()));

    let error = psql(conninfo("carl", None)).await.expect_err("no certificate");
    assert!(error.contains("connection requires a valid client certificate"), "{error}");
    let error = psql(conninfo("carl", Some(&certificates().client("carla")))).await.expect_err("another name");
    assert!(error.contains("certificate authentication failed for user \"carl\""), "{error}");
    let stranger = crate::harness::certificates::Certificates::new().client("carl");
    assert!(psql(conninfo("carl", Some(&stranger))).await.is_err(), "an unknown authority");
}

#[tokio::test]
async fn tls_is_there_as_the_configuration_says() {
    let off = Front::with("off", "5s").await;
    assert_eq!(psql(off.conninfo("sam", "password=secret sslmode=prefer")).await, Ok("sam|app|none".to_owned()));
    let error = psql(off.conninfo("sam", "password=secret sslmode=require")).await.expect_err("no TLS there");
    assert!(error.contains("server does not support SSL"), "{error}");

    let require = Front::with("require", "5s").await;
    let error = psql(require.conninfo("sam", "password=secret sslmode=disable")).await.expect_err("no TLS");
    assert!(error.contains("connection requires TLS"), "{error}");
    let allowed = psql(require.conninfo("sam", "password=secret sslmode=allow")).await;
    assert_eq!(allowed, Ok("sam|app|TLSv1.3".to_owned()), "libpq's `allow` tries again with TLS");

    let verify = Front::with("verify-client", "5s").await;
    let error = psql(verify.conninfo("sam", "password=secret sslmode=require")).await.expect_err("no certificate");
    assert!(error.contains("requires a valid client certificate"), "{error}");
    let shown = Tls::new(&certificates().ca, Some(&certificates().client("anyone")));
    let client = shown.connect(&verify.conninfo("sam", "password=secret sslmode=require")).await.expect("in");
    assert_eq!(who(&client).await, ["sam", "app", "TLSv1.3"]);
}

#[tokio::test]
async fn a_unix_socket_needs_no_tls_and_is_local() {
    let front = Front::with("require", "5s").await;
    let conninfo = |user: &str| {
        format!("host={} port={} user={user} dbname=app password=secret", front.folder.display(), front.port)
    };
    assert_eq!(psql(conninfo("sam")).await, Ok("sam|app|none".to_owned()));
    assert_eq!(psql(conninfo("tom")).await, Ok("tom|app|none".to_owned()));
}

#[tokio::test]
async fn databases_are_named_only_to_those_who_are_known() {
    let mut front = Front::start().await;
    let code = |error: tokio_postgres::Error| error.code().map(|code| code.code().to_owned());
    let nowhere =
        |password: &str| front.conninfo("sam", &format!("dbname=nowhere password={password} sslmode=disable"));
    assert_eq!(code(try_connect(&nowhere("wrong")).await.expect_err("refused")).as_deref(), Some("28P01"));
    let error = try_connect(&nowhere("secret")).await.expect_err("refused");
    assert!(error.as_db_error().is_some_and(|error| error.message() == "database \"nowhere\" does not exist"));
    assert_eq!(code(error).as_deref(), Some("3D000"));

    let only = front.conninfo("only", "password=secret sslmode=disable");
    assert_eq!(code(try_connect(&only).await.expect_err("refused")).as_deref(), Some("42501"));
    assert!(try_connect(&format!("{only} dbname=other")).await.is_ok());
    for _ in 0..3 {
        front.refusal().await;
    }
    assert!(matches!(front.outcome().await, Outcome::In { database, .. } if database == "other"));
}

#[tokio::test]
async fn tokio_postgres_binds_the_channel_and_its_settings_arrive() {
    let mut front = Front::start().await;
    let tls = Tls::new(&certificates().ca, None);
    let rest =
        "password=secret sslmode=require channel_binding=require application_name=story options='-c work_mem=1MB'";
    let client = tls.connect(&front.conninfo("sam", rest)).await.expect("logged in");
    assert_eq!(who(&client).await, ["sam", "app", "TLSv1.3"]);
    let Outcome::In { user, database, minor, settings } = front.outcome().await else { panic!("nobody got in") };
    assert_eq!((user.as_str(), database.as_str(), minor), ("sam", "app", 0));
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(settings[0], pair("work_mem", "1MB"));
    assert!(
        settings.contains(&pair("application_name", "story")) && settings.contains(&pair("client_encoding", "UTF8"))
    );
}

#[tokio::test]
async fn replication_is_refused_with_a_hint() {
    let front = Front::start().await;
    let mut client = WireClient::bare(front.port).await;
    client.startup(0x0003_0000, &[("user", "tom"), ("database", "app"), ("replication", "database")]).await;
    let last = client.ended().await;
    let error = last.last().expect("a message");
    assert_eq!(error.field(b'C').as_deref(), Some("42501"));
    assert!(error.field(b'H').is_some());
}

#[tokio::test]
async fn a_full_house_says_so_even_under_tls_and_still_takes_cancel_requests() {
    let mut front = Front::start().await;
    front.close_the_house();
    for mode in ["disable", "require"] {
        let error = psql(front.conninfo("sam", &format!("password=secret sslmode={mode}"))).await.expect_err("full");
        assert!(error.ends_with("FATAL:  sorry, too many clients already"), "{mode}: {error}");
        assert_eq!(front.refusal().await.sqlstate().code(), "53300");
    }
    let mut canceller = WireClient::bare(front.port).await;
    canceller.say(|out| startup::cancel_request(out, 7, b"1234")).await;
    assert!(matches!(front.outcome().await, Outcome::Cancel(7, secret) if secret == b"1234"));
}
