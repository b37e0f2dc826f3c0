//! What a client listens to is what its transactions committed, and it hears of what was notified from then on.

use bytes::BytesMut;
use pgherd::wire::writer;

use super::{hears, listeners, nobody_listens, parts, run, stage, told};
use crate::harness::wire::{WireClient, bind, rows, tags};
use crate::harness::{self};
use crate::relay::proxy::Proxy;

/// Nothing but this is heard: whatever was notified before it would have come first.
async fn hears_only(client: &mut WireClient, proxy: &Proxy, channel: &str) {
    proxy.database.execute(&format!("notify {channel}, 'only'")).await;
    hears(client, channel, "only").await;
}

#[tokio::test]
async fn a_client_that_holds_no_server_hears_what_anybody_notifies() {
    let proxy = stage().await;
    let (mut listens, mut other) = (proxy.wire().await, proxy.wire().await);
    assert_eq!(tags(&listens.query("listen News").await), "CZ");
    run(&mut other, "notify news, 'from another client'").await;
    hears(&mut listens, "news", "from another client").await;
    run(&mut other, "begin; select pg_notify('news', 'first'); notify news, 'second'").await;
    run(&mut other, "notify news, 'second'; notify news").await;
    assert_eq!(listeners(&proxy.database).await.len(), 1);
    run(&mut other, "commit").await;
    for payload in ["first", "second", ""] {
        hears(&mut listens, "news", payload).await;
    }
    run(&mut other, "begin; notify news, 'never'; rollback").await;
    hears_only(&mut listens, &proxy, "news").await;

    run(&mut listens, "unlisten news").await;
    run(&mut listens, "listen other").await;
    run(&mut other, "notify news, 'unheard'").await;
    hears_only(&mut listens, &proxy, "other").await;
    drop(listens);
    proxy.examine().await;
    nobody_listens(&proxy.database).await;
}

#[tokio::test]
async fn who_notifies_itself_hears_it_and_the_pid_is_the_notifying_process() {
    let proxy = stage().await;
    let mut client = proxy.wire().await;
    run(&mut client, "listen me").await;
    let mut notified = Vec::new();
    let answer = client.query("begin; notify me, 'mine'; select pg_backend_pid(); commit").await;
    notified.extend(answer.iter().filter(|it| it.tag == b'A').cloned());
    while notified.is_empty() {
        notified.push(client.next().await);
    }
    assert_eq!(told(&notified[0]), ("me".to_owned(), "mine".to_owned()));
    let pid = i32::from_be_bytes(notified[0].body[..4].try_into().expect("four bytes"));
    assert_eq!(rows(&answer), [[Some(pid.to_string())]]);
}

/// Each story is told to PostgreSQL itself and to pgherd: afterwards both clients listen to the same channels.
#[tokio::test]
async fn after_any_transaction_a_client_listens_to_what_it_would_on_postgresql() {
    let stories: &[&[&str]] = &[
        &["listen a"],
        &["listen A", "listen \"A\"", "LISTEN \"q\"\"uote\"", "listen U&\"d\\0061t\""],
        &["begin", "listen a", "rollback"],
        &["begin", "listen a", "select 1/0", "commit"],
        &["begin", "listen a", "select 1/0", "listen b", "rollback", "listen c"],
        &["begin", "listen a", "savepoint s", "listen b", "rollback to s", "commit"],
        &["begin", "savepoint s", "listen a", "rollback to savepoint s", "listen b", "commit"],
        &["begin", "listen a", "savepoint s", "listen b", "select 1/0", "savepoint s", "rollback to s", "end"],
        &["begin", "listen a", "savepoint s", "listen b", "release s", "commit and chain", "listen c", "rollback"],
        &["begin", "listen a", "rollback and chain", "listen b", "commit"],
        &["listen a", "begin", "unlisten a", "rollback"],
        &["listen a", "listen b", "begin", "unlisten *", "listen c", "commit"],
        &["listen a", "listen b", "unlisten a", "unlisten nothing"],
        &["listen a; listen b; unlisten a"],
        &["listen a; select 1/0"],
        &["begin; listen a", "listen b; commit"],
        &["begin; listen a; rollback", "listen b"],
        &["begin; listen a; select 1/0; commit", "commit", "listen b"],
        &["listen a", "discard all", "listen b"],
        &["listen a", "begin", "discard all", "rollback"],
        &["listen a", "listen a", "unlisten a"],
        &["begin", "listen a", "prepare transaction 'x'", "listen b"],
        &["listen a", "reset all", "set work_mem to '1MB'"],
        &[
            "create table t (a int unique deferrable initially deferred)",
            "begin",
            "listen a",
            "insert into t values (1), (1)",
            "commit",
        ],
        &["listen", "listen a b", "listen 'a'", "unlisten", "listen good"],
    ];
    let long = "x".repeat(70);
    let longer = format!("listen {long}; listen \"{}é!\"", "y".repeat(62));
    let cut = [longer.as_str()];
    let stories = stories.iter().copied().chain([&cut[..]]);
    let straight = harness::fresh_database().await;
    let proxy = stage().await;
    for story in stories {
        let mut oracle = WireClient::login(straight.port, "postgres", &straight.name).await;
        let mut client = proxy.wire().await;
        for text in story {
            let (expected, found) = (oracle.query(text).await, client.query(text).await);
            assert_eq!(parts(&found).0, parts(&expected).0, "{text} in {story:?}: {found:?}");
            let state = |messages: &[harness::wire::Message]| {
                messages.iter().find(|it| it.tag == b'E').and_then(|it| it.field(b'C'))
            };
            assert_eq!(state(&found), state(&expected), "{text} in {story:?}");
        }
        let shown = "select pg_listening_channels()";
        let channels = rows(&oracle.query(shown).await);
        assert_eq!(rows(&client.query(shown).await), channels, "{story:?}");
        let all = ["a", "b", "c", "A", "q\"uote", "data", "good", "t"];
        let probe: String = all
            .iter()
            .map(|name| format!("notify \"{}\";", name.replace('"', "\"\"")))
            .chain([format!("notify {}; notify \"{}\"; notify \"end\"", &long[..63], "y".repeat(62))])
            .collect();
        let mut heard = Vec::new();
        for (client, database) in [(&mut oracle, &straight), (&mut client, &proxy.database)] {
            // Channels of the story, then one that ends it, by somebody else.
            run(client, "listen \"end\"").await;
            database.execute(&probe).await;
            let mut names = Vec::new();
            while names.last().is_none_or(|name| name != "end") {
                names.push(told(&client.next().await).0);
            }
            heard.push(names);
        }
        assert_eq!(heard[1], heard[0], "{story:?}");
        drop(client);
        proxy.examine().await;
    }
}

#[tokio::test]
async fn in_the_extended_protocol_a_pipeline_listens_when_its_sync_commits() {
    let proxy = stage().await;
    let mut client = proxy.wire().await;
    let execute = |out: &mut BytesMut, texts: &[&str]| {
        for text in texts {
            writer::parse(out, b"", text.as_bytes(), &[]);
            bind(out, "", "", &[], 0);
            writer::execute(out, b"", 0);
        }
        writer::sync(out);
    };
    for (texts, listens) in [
        (&["listen a"][..], true),
        (&["listen a", "select 1/0"], false),
        (&["begin", "listen a", "commit"], true),
        (&["begin", "listen a", "commit", "select 1/0"], true),
        (&["begin", "listen a", "rollback"], false),
        (&["begin", "listen b", "savepoint s", "listen a", "rollback to s", "commit"], false),
        (&["listen a", "unlisten a"], false),
    ] {
        client.say(|out| execute(out, texts)).await;
        let answer = client.until_ready().await;
        assert!(tags(&answer).ends_with('Z'), "{texts:?}: {answer:?}");
        let shown = rows(&client.query("select * from pg_listening_channels() t(c) where c = 'a'").await);
        assert_eq!(!shown.is_empty(), listens, "{texts:?}");
        run(&mut client, "listen always").await;
        proxy.database.execute("notify a, 'x'; notify always").await;
        if listens {
            hears(&mut client, "a", "x").await;
        }
        hears(&mut client, "always", "").await;
        run(&mut client, "unlisten *").await;
    }
    // A transaction over several flights.
    for text in ["begin", "listen a", "commit"] {
        client.say(|out| execute(out, &[text])).await;
        client.until_ready().await;
    }
    hears_only(&mut client, &proxy, "a").await;
    proxy.at_rest().await;
    drop(client);
    proxy.examine().await;
}

#[tokio::test]
async fn nothing_is_heard_within_a_transaction_and_nothing_old_behind_it() {
    let proxy = Proxy::start("max_connections = 2").await;
    let mut client = proxy.wire().await;
    run(&mut client, "listen a").await;
    run(&mut client, "begin").await;
    run(&mut client, "listen b").await;
    proxy.database.execute("notify b, 'before the commit'").await;
    proxy.database.execute("notify a, 'meanwhile'").await;
    for _ in 0..20 {
        assert_eq!(run(&mut client, "select pg_sleep(0.01)").await, []);
    }
    let mut heard = run(&mut client, "commit").await;
    proxy.database.execute("notify b, 'behind it'").await;
    while heard.len() < 2 {
        heard.push(told(&client.next().await));
    }
    let expected = [("a", "meanwhile"), ("b", "behind it")];
    assert_eq!(heard, expected.map(|(channel, payload)| (channel.to_owned(), payload.to_owned())));
}

#[tokio::test]
async fn what_cannot_be_followed_is_refused_and_what_cannot_be_shared_is_pinned() {
    let proxy = Proxy::start("max_connections = 3").await;
    let mut client = proxy.wire().await;
    for text in ["listen a; commit; listen b", "begin; savepoint s; listen a"] {
        let answer = client.query(text).await;
        assert_eq!(answer[0].field(b'C').as_deref(), Some("0A000"), "{text}");
    }
    run(&mut client, "listen a").await;
    run(&mut client, "begin").await;
    let answer = client.query("select pg_listening_channels()").await;
    assert_eq!(answer[0].field(b'C').as_deref(), Some("0A000"));
    assert_eq!(tags(&client.query("rollback").await), "CZ");
    hears_only(&mut client, &proxy, "a").await;

    // In an encoding of its own a name is not known, and text cannot be passed on.
    let (mut latin, _) = proxy.wire_with(&[("client_encoding", "LATIN1")]).await;
    latin.say(|out| writer::query(out, b"listen \"\xe4\"")).await;
    assert_eq!(tags(&latin.until_ready().await), "CZ");
    proxy.database.execute("notify \"ä\", 'ö'").await;
    let message = latin.next().await;
    assert_eq!(message.body[4..], *b"\xe4\0\xf6\0", "its own server told it");
    let (mut latin, _) = proxy.wire_with(&[("client_encoding", "LATIN1")]).await;
    run(&mut latin, "listen plain").await;
    hears_only(&mut latin, &proxy, "plain").await;
    proxy.database.execute("notify plain, 'ö'").await;
    let last = latin.ended().await;
    assert_eq!(last[0].field(b'C').as_deref(), Some("0A000"));
}

#[tokio::test]
async fn with_pins_and_in_session_mode_listen_is_postgresqls_own() {
    for pool in ["listen = \"pin\"", "mode = \"session\""] {
        let proxy = Proxy::start(&format!("max_connections = 2, {pool}")).await;
        let mut client = proxy.wire().await;
        run(&mut client, "listen a").await;
        assert_eq!(run(&mut client, "notify a, 'x'").await, [("a".to_owned(), "x".to_owned())], "before ReadyForQuery");
        hears_only(&mut client, &proxy, "a").await;
        assert!(listeners(&proxy.database).await.is_empty(), "{pool}");
        drop(client);
        proxy.examine().await;
    }
}
