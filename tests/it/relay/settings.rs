//! What a client sets is the client's, wherever its statements run.

use pgherd::wire::writer;

use super::proxy::Proxy;
use crate::harness;
use crate::harness::wire::{Message, WireClient, bind, rows, tags};

async fn show(client: &mut WireClient, expression: &str) -> String {
    let answers = client.query(&format!("select {expression}")).await;
    let rows = rows(&answers);
    rows.first().and_then(|row| row[0].clone()).unwrap_or_else(|| format!("{answers:?}"))
}

/// What the ParameterStatus messages among these say of a setting, the last if there are several.
fn reported(messages: &[Message], name: &str) -> Option<String> {
    let reports = messages.iter().filter(|message| message.tag == b'S' && message.text() == name);
    let value = |message: &Message| {
        message.body.split(|&byte| byte == 0).nth(1).map(|value| String::from_utf8_lossy(value).into_owned())
    };
    reports.filter_map(value).next_back()
}

#[tokio::test]
async fn settings_follow_their_client_over_every_server() {
    let proxy = Proxy::start("max_connections = 2").await;
    let role = harness::unique("relay_role");
    proxy
        .database
        .execute(&format!("create role {role}; create schema \"a,b\"; grant usage on schema \"a,b\" to public"))
        .await;
    let (mut one, mut two) = (proxy.wire().await, proxy.wire().await);
    let sets = [
        "set timezone to 'Asia/Tokyo'",
        "set work_mem to '1MB'",
        "set app.tenant to 'it''s \\ 7'",
        "set search_path to \"a,b\", public",
        "set statement_timeout to '7s'",
    ];
    for set in sets {
        assert!(tags(&one.query(set).await).starts_with('C'), "{set}");
    }
    one.query(&format!("set role {role}")).await;
    for _ in 0..2 {
        let mut holder = proxy.wire().await;
        holder.query("begin").await;
        assert_eq!(
            show(&mut two, "current_user || current_setting('timezone') || current_setting('work_mem')").await,
            "postgresUTC4MB".replace("UTC", &zone(&proxy).await)
        );
        let mine = show(&mut one, "concat_ws('|', current_user, current_setting('timezone'), current_setting('work_mem'), current_setting('app.tenant'), current_setting('search_path'), current_setting('statement_timeout'))").await;
        assert_eq!(mine, format!("{role}|Asia/Tokyo|1MB|it's \\ 7|\"a,b\", public|7s"));
        holder.query("rollback").await;
    }
    one.query("reset all").await;
    assert_eq!(show(&mut one, "current_user").await, role, "RESET ALL does not touch the role");
    one.query("reset role").await;
    assert_eq!(show(&mut one, "current_user").await, "postgres");
    drop((one, two));
    proxy.examine().await;
}

async fn zone(proxy: &Proxy) -> String {
    proxy.database.client().await.query_one("show timezone", &[]).await.expect("shown").get(0)
}

#[tokio::test]
async fn what_a_transaction_undoes_is_undone() {
    let proxy = Proxy::start("max_connections = 1").await;
    let mut client = proxy.wire().await;
    for (script, wanted) in [
        ("begin; set work_mem to '1MB'; rollback", "4MB"),
        ("begin; set work_mem to '1MB'; savepoint a; set work_mem to '2MB'; rollback to a; commit", "1MB"),
        ("begin; reset work_mem; rollback", "1MB"),
        ("begin; set local work_mem to '3MB'; commit", "1MB"),
        ("select set_config('work_mem', '5MB', false); select 1/0", "1MB"),
        ("select set_config('work_mem', '5MB', false)", "5MB"),
        ("reset work_mem", "4MB"),
    ] {
        client.query(script).await;
        // Another client in between, so that the setting must be put back.
        proxy.wire().await.query("select 1").await;
        assert_eq!(show(&mut client, "current_setting('work_mem')").await, wanted, "after {script}");
        proxy.examine().await;
    }
}

/// Startup parameters are what RESET goes back to, at once, and the client is told.
#[tokio::test]
async fn another_authorization_takes_the_role_away() {
    let proxy = Proxy::start("max_connections = 1").await;
    let [ann, ben] = ["relay_ann", "relay_ben"].map(harness::unique);
    proxy.database.execute(&format!("create role {ann}; create role {ben}; grant {ben} to {ann}")).await;
    let mut client = proxy.wire().await;
    for (script, wanted) in [
        (format!("set session authorization {ann}; set role {ben}"), format!("{ann} {ben} {ben}")),
        (format!("begin; set session authorization {ann}; commit"), format!("{ann} {ann} none")),
        (format!("set role {ben}"), format!("{ann} {ben} {ben}")),
        ("reset session authorization".to_owned(), "postgres postgres none".to_owned()),
        (format!("set role {ben}"), format!("postgres {ben} {ben}")),
        (format!("select set_config('session_authorization', '{ann}', false)"), format!("{ann} {ann} none")),
        ("set session authorization default".to_owned(), "postgres postgres none".to_owned()),
    ] {
        assert!(!tags(&client.query(&script).await).contains('E'), "{script}");
        // Another client in between, so that all must be put back.
        assert_eq!(show(&mut proxy.wire().await, "current_user").await, "postgres");
        let seen = show(&mut client, "concat_ws(' ', session_user, current_user, current_setting('role'))").await;
        assert_eq!(seen, wanted, "{script}");
    }
    drop(client);
    proxy.examine().await;
}

#[tokio::test]
async fn reset_goes_back_to_what_the_client_asked_for_at_startup() {
    for mode in ["transaction", "session"] {
        let proxy = Proxy::start(&format!("max_connections = 2, mode = \"{mode}\"")).await;
        let parameters = [("TimeZone", "Asia/Tokyo"), ("options", "-c work_mem=2MB"), ("application_name", "story")];
        let (mut client, greeting) = proxy.wire_with(&parameters).await;
        assert_eq!(reported(&greeting, "TimeZone").as_deref(), Some("Asia/Tokyo"), "{mode}");
        let state = "concat_ws(' ', current_setting('timezone'), current_setting('work_mem'), current_setting('application_name'))";
        assert_eq!(show(&mut client, state).await, "Asia/Tokyo 2MB story", "{mode}");
        for reset in ["reset all", "begin; set timezone to 'Europe/Paris'; rollback", "discard all", "reset timezone"] {
            client
                .query("set timezone to 'Europe/Paris'; set work_mem to '1MB'; set application_name to 'other'")
                .await;
            let mut answers = client.query(reset).await;
            answers.extend(client.query("select 1").await);
            if reset != "begin; set timezone to 'Europe/Paris'; rollback" {
                assert_eq!(reported(&answers, "TimeZone").as_deref(), Some("Asia/Tokyo"), "{mode} {reset}");
                assert!(show(&mut client, state).await.starts_with("Asia/Tokyo"), "{mode} {reset}");
            }
            if reset.ends_with("all") {
                assert_eq!(show(&mut client, state).await, "Asia/Tokyo 2MB story", "{mode} {reset}");
            }
        }
        client.query("begin").await;
        client.query("set timezone to 'Europe/Paris'").await;
        client.query("reset timezone").await;
        assert_eq!(show(&mut client, "current_setting('timezone')").await, "Asia/Tokyo", "{mode}, in a transaction");
        client.query("rollback").await;
        assert_eq!(show(&mut client, "current_setting('timezone')").await, "Asia/Tokyo", "{mode}, after it");
        drop(client);
        proxy.examine().await;
    }
}

#[tokio::test]
async fn values_beyond_ascii_survive_other_clients_encodings() {
    let proxy = Proxy::start("max_connections = 1").await;
    let role = harness::unique("rôle");
    proxy.database.execute(&format!("create role \"{role}\"")).await;
    let mut utf8 = proxy.wire().await;
    utf8.query(&format!("set app.who to 'Žofie Ünïcode'; set role \"{role}\"")).await;
    let (mut latin1, _) = proxy.wire_with(&[("client_encoding", "LATIN1")]).await;
    latin1.query("select 1").await;
    assert_eq!(show(&mut utf8, "current_setting('app.who') || current_user").await, format!("Žofie Ünïcode{role}"));
    // The other way round: set under LATIN1, read back by pgherd, and put on a server again.
    let mut set = b"set app.who to 'caf\xe9'".to_vec();
    set.push(0);
    latin1.say(|out| pgherd::wire::writer::message(out, b'Q', |out| out.extend_from_slice(&set))).await;
    latin1.until_ready().await;
    utf8.query("select 1").await;
    assert_eq!(show(&mut latin1, "ascii(right(current_setting('app.who'), 1))").await, "233");
    drop((utf8, latin1));
    proxy.examine().await;
}

/// A statement_timeout of a millisecond is its own client's trouble.
#[tokio::test]
async fn a_deadly_setting_hurts_nobody_else() {
    let proxy = Proxy::start("max_connections = 2").await;
    for set in [
        "set statement_timeout to '1ms'",
        "set default_transaction_read_only to on",
        "set idle_session_timeout to '20ms'",
        "set session_replication_role to replica",
        "set search_path to nowhere",
        "set default_transaction_isolation to serializable",
    ] {
        let mut bad = proxy.wire().await;
        bad.query(set).await;
        drop(bad);
        for _ in 0..3 {
            let mut other = proxy.wire().await;
            let state = "concat_ws(' ', pg_sleep(0.01), current_setting('statement_timeout'), current_setting('default_transaction_read_only'), current_setting('session_replication_role'), current_setting('default_transaction_isolation'))";
            assert_eq!(show(&mut other, state).await.trim(), "0 off origin read committed", "after {set}");
        }
    }
    // Both servers at a time, so that the one with a millisecond left is not the one that is looked at.
    let (mut one, mut two) = (proxy.wire().await, proxy.wire().await);
    for text in ["begin; select 1", "commit"] {
        one.query(text).await;
        two.query(text).await;
    }
    proxy.examine().await;
}

#[tokio::test]
async fn nothing_of_a_session_stays_behind_in_session_mode() {
    let proxy = Proxy::start("max_connections = 1, mode = \"session\"").await;
    for leave in [
        "listen here",
        "create temp table mine (a int)",
        "select pg_advisory_lock(1)",
        "set work_mem to '1MB'",
        "prepare p as select 1",
        "begin; declare c cursor with hold for select 1; commit",
        "begin; select 1",
        "select set_config('app.x', '1', false)",
        "do $$ begin perform set_config('work_mem', '1MB', false); end $$",
    ] {
        let mut client = proxy.wire().await;
        client.query(leave).await;
        drop(client);
        proxy.examine().await;
    }
}

/// A function, a trigger, a constraint, a view and what calls them: their texts say nothing of what they set.
#[tokio::test]
async fn code_that_sets_unseen_leaves_nothing_to_others() {
    let proxy = Proxy::start("max_connections = 1").await;
    let setup = "create function hides(text) returns text language plpgsql as
                   $$ begin perform set_config('app.hidden', $1, false); return $1; end $$;
                 create function calls(text) returns text language sql as $$ select hides($1) $$;
                 create table fires (a text); create table over (a text, check (hides('x') is not null));
                 create function trigger_hides() returns trigger language plpgsql as
                   $$ begin set work_mem to '1MB'; perform hides(new.a); return new; end $$;
                 create trigger fires before insert on fires for each row execute function trigger_hides();
                 create view shows as select hides('x') as hidden";
    proxy.database.execute(setup).await;
    let later =
        "create function later() returns void language plpgsql as $$ begin execute 'set app.hidden to 7'; end $$";
    proxy.wire().await.query(later).await;
    for text in [
        "select hides('x')",
        "select calls('x')",
        "insert into fires values ('x')",
        "insert into over values ('x')",
        "select * from shows",
        "select later()",
        "begin; declare c cursor for select hides('x'); fetch c; commit",
        "do $$ begin perform hides('x'); end $$",
        "create table made as select hides('x')",
    ] {
        let mut one = proxy.wire().await;
        let answers = one.query(text).await;
        assert!(answers.iter().all(|message| message.tag != b'E'), "{text}: {answers:?}");
        let mut other = proxy.wire().await;
        let both = "coalesce(current_setting('app.hidden', true), '') || current_setting('work_mem')";
        assert_eq!(show(&mut other, both).await, "4MB", "after {text}");
        proxy.examine().await;
    }
    // And by messages, behind something that is harmless.
    let mut one = proxy.wire().await;
    one.say(|out| {
        for text in ["select 1", "select hides('x')"] {
            writer::parse(out, b"", text.as_bytes(), &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 0);
        }
        writer::sync(out);
    })
    .await;
    one.until_ready().await;
    proxy.examine().await;
    assert_eq!(show(&mut proxy.wire().await, "coalesce(current_setting('app.hidden', true), '')").await, "");
}

/// ALTER DATABASE and ALTER ROLE give new logins other defaults: no session finds now these, now those.
#[tokio::test]
async fn defaults_that_change_are_the_same_on_every_server() {
    let proxy = Proxy::start("max_connections = 2").await;
    let (mut one, mut other) = (proxy.wire().await, proxy.wire().await);
    one.query("begin").await;
    proxy.database.execute(&format!("alter database {} set work_mem to '9MB'", proxy.database.name)).await;
    // Also those that pgherd was opening meanwhile, which may have the old default and are not idle yet.
    let old = "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() \
               and pid <> pg_backend_pid() and state is distinct from 'idle in transaction' and backend_start < $1";
    let observer = proxy.database.client().await;
    let now = observer.query_one("select clock_timestamp()", &[]).await.expect("a moment");
    let now: std::time::SystemTime = now.get(0);
    harness::eventually(std::time::Duration::from_secs(20), "all but the transaction's are gone", async || {
        observer.query(old, &[&now]).await.expect("ended").is_empty()
    })
    .await;
    // A second server connection, the first with the new default.
    assert_eq!(show(&mut other, "current_setting('work_mem')").await, "9MB");
    assert_eq!(show(&mut one, "current_setting('work_mem')").await, "4MB", "a transaction keeps what it has");
    one.query("commit").await;
    for _ in 0..4 {
        other.query("begin").await;
        assert_eq!(show(&mut one, "current_setting('work_mem')").await, "9MB");
        one.query("set work_mem to '4MB'").await;
        other.query("commit").await;
        one.query("begin").await;
        assert_eq!(show(&mut other, "current_setting('work_mem')").await, "9MB");
        assert_eq!(show(&mut one, "current_setting('work_mem')").await, "4MB");
        one.query("reset work_mem").await;
        one.query("commit").await;
    }
    drop((one, other));
    proxy.examine().await;
}
