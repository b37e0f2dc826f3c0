//! The harness's instruments, tried on PostgreSQL itself: what they say of pgherd can be believed only then.

use std::time::Duration;

use pgherd::wire::writer;

use crate::harness::faults::{Faults, Forwarder};
use crate::harness::scripted::{Act, ScriptedServer};
use crate::harness::tls::Tls;
use crate::harness::wire::{WireClient, bind, rows, tags};
use crate::harness::{self, certificates, fresh_database, fresh_role};

#[tokio::test]
async fn the_wire_client_speaks_the_extended_protocol() {
    let database = fresh_database().await;
    let mut client = WireClient::login(database.port, "postgres", &database.name).await;
    client
        .say(|out| {
            writer::parse(out, b"", b"select $1::int + 1, null", &[]);
            bind(out, "", "", &[Some("41")], 0);
            writer::describe(out, b'P', b"");
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
    let messages = client.expect("12TDCZ").await;
    assert_eq!(rows(&messages), [[Some("42".to_owned()), None]]);
    let messages = client.query("select nonsense").await;
    assert_eq!(tags(&messages), "EZ");
    assert_eq!(messages[0].field(b'C').as_deref(), Some("42703"));
}

#[tokio::test]
async fn the_wire_client_cancels() {
    let database = fresh_database().await;
    let mut client = WireClient::login(database.port, "postgres", &database.name).await;
    client.say(|out| writer::query(out, b"select pg_sleep(60)")).await;
    let observer = database.client().await;
    let running = "select 1 from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(60)' and state = 'active'";
    harness::eventually(Duration::from_secs(10), "the query runs", async || {
        !observer.query(running, &[]).await.expect("query").is_empty()
    })
    .await;
    client.cancel().await;
    let messages = client.until_ready().await;
    assert_eq!(
        messages.iter().find(|message| message.tag == b'E').and_then(|error| error.field(b'C')).as_deref(),
        Some("57014")
    );
}

#[tokio::test]
async fn a_scripted_server_logs_a_driver_in_and_answers() {
    let mut answer = bytes::BytesMut::new();
    writer::text_row_description(&mut answer, &["a"]);
    writer::data_row(&mut answer, [Some(&b"scripted"[..])].into_iter());
    writer::command_complete(&mut answer, "SELECT 1");
    writer::ready_for_query(&mut answer, writer::TransactionStatus::Idle);
    let server =
        ScriptedServer::start(vec![vec![Act::Login, Act::Expect(b'Q'), Act::Send(answer.to_vec()), Act::UntilClosed]])
            .await;
    let client = harness::connect(&server.conninfo()).await;
    let answer = client.simple_query("select a").await.expect("query");
    assert!(answer.iter().any(
        |message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("scripted"))
    ));
    drop(client);
    server.done().await;
}

#[tokio::test]
async fn a_forwarder_holds_back_and_cuts() {
    let database = fresh_database().await;
    let forwarder = Forwarder::to(database.port).await;
    let mut client = WireClient::login(forwarder.port, "postgres", &database.name).await;
    assert_eq!(rows(&client.query("select 1").await), [[Some("1".to_owned())]]);

    forwarder.set(Faults { paused: true, ..Faults::default() });
    client.say(|out| writer::query(out, b"select 2")).await;
    client.silent(Duration::from_millis(100)).await;
    forwarder.heal();
    assert_eq!(rows(&client.until_ready().await), [[Some("2".to_owned())]]);

    forwarder.cut();
    assert!(client.ended().await.is_empty());
    assert!(WireClient::login(forwarder.port, "postgres", &database.name).await.query("select 3").await.len() > 3);

    forwarder.set(Faults { cut_down_after: Some(3), ..Faults::default() });
    let mut client = WireClient::bare(forwarder.port).await;
    client.startup(0x0003_0000, &[("user", "postgres"), ("database", &database.name)]).await;
    assert!(client.ended().await.is_empty(), "three bytes are no message");
    assert_eq!(forwarder.accepted(), 3);
}

#[tokio::test]
async fn logins_over_tls_are_as_the_shared_server_demands_them() {
    let (database, role) = (fresh_database().await, fresh_role("scram").await);
    let tls = Tls::new(&certificates().ca, None);
    let conninfo = |user: &str, rest: &str| {
        format!(
            "host=localhost hostaddr=127.0.0.1 port={} dbname={} user={user} sslmode=require {rest}",
            database.port, database.name
        )
    };
    let client =
        tls.connect(&conninfo(&role, "password=secret channel_binding=require")).await.expect("SCRAM-SHA-256-PLUS");
    let row = client.query_one("select ssl from pg_stat_ssl where pid = pg_backend_pid()", &[]).await.expect("query");
    assert!(row.get::<_, bool>(0));
    let error = tls.connect(&conninfo(&role, "password=wrong")).await.expect_err("a wrong password");
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("28P01"));

    let by_certificate = fresh_role("cert").await;
    assert!(tls.connect(&conninfo(&by_certificate, "")).await.is_err(), "no certificate was shown");
    let shown = Tls::new(&certificates().ca, Some(&certificates().client(&by_certificate)));
    shown.connect(&conninfo(&by_certificate, "")).await.expect("login by certificate");

    let stranger = harness::certificates::Certificates::new();
    let error =
        Tls::new(&stranger.ca, None).connect(&conninfo("postgres", "")).await.expect_err("an unknown authority");
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
}
