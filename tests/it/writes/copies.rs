//! COPY FROM STDIN over several shards: what one PostgreSQL takes is taken, what it refuses is refused with its line, and nothing stays.

use bytes::{BufMut, Bytes};
use futures_util::SinkExt;
use pgherd::wire::writer;

use super::several::Twins;
use super::stage::{ok, say};
use crate::harness::Pgherd;
use crate::harness::wire::{Message, WireClient, rows};

/// Sends a COPY and its data, cut into messages of that many bytes.
pub(super) async fn copy(
    client: &mut WireClient,
    sql: &str,
    data: &[u8],
    step: usize,
) -> (Option<String>, Option<String>, String, char) {
    client.say(|out| writer::query(out, sql.as_bytes())).await;
    let first = client.next().await;
    let mut messages: Vec<Message> = Vec::new();
    if first.tag == b'G' {
        client
            .say(|out| {
                for chunk in data.chunks(step.max(1)) {
                    writer::message(out, b'd', |out| out.put_slice(chunk));
                }
                writer::message(out, b'c', |_| {});
            })
            .await;
    } else {
        messages.push(first);
    }
    messages.extend(client.until_ready().await);
    told(&messages)
}

/// SQLSTATE, context, tag and status.
fn told(messages: &[Message]) -> (Option<String>, Option<String>, String, char) {
    let error = messages.iter().find(|message| message.tag == b'E');
    let tag = messages.iter().find(|message| message.tag == b'C').map(Message::text).unwrap_or_default();
    let status = messages.last().map_or(' ', |message| char::from(message.body[0]));
    (error.and_then(|it| it.field(b'C')), error.and_then(|it| it.field(b'W')), tag, status)
}

impl Twins {
    async fn copied(&self, clients: &mut (WireClient, WireClient), sql: &str, data: &[u8]) -> Option<String> {
        let truth = copy(&mut clients.0, sql, data, data.len()).await;
        let given = copy(&mut clients.1, sql, data, data.len()).await;
        assert_eq!(truth, given, "{sql} {}", String::from_utf8_lossy(data));
        for step in [1, 7, 100] {
            let again = copy(&mut clients.1, sql, data, step).await;
            assert_eq!(copy(&mut clients.0, sql, data, step).await, again, "{sql} in pieces of {step}");
        }
        truth.0
    }
}

#[tokio::test]
async fn rows_in_every_form_go_where_they_belong() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let text = b"1\t10\tplain\n2\t20\t\\N\n3\t30\ta\\tb\\\\c\\nd\n4\t40\t\xc3\xbc\n5\t50\tlast\\\nline\n6\t60\tno end";
    assert_eq!(twins.copied(&mut clients, "copy entries (account_id, amount, note) from stdin", text).await, None);
    let csv = b"note,account_id,amount\n\"a, \"\"b\"\"\nc\",\"7\",1\n,8,2\n\"\",9,3\nit's,10,4\nx\"y,z\"w,11,5\n";
    let sql = "copy entries (note, account_id, amount) from stdin with (format csv, header)";
    assert_eq!(twins.copied(&mut clients, sql, csv).await, None);
    let other = b"'it''s'|12|1\r\nnone|13|2\r\n'none'|14|3\r\n";
    let sql =
        "copy entries (note, account_id, amount) from stdin with (format csv, delimiter '|', quote '''', null 'none')";
    assert_eq!(twins.copied(&mut clients, sql, other).await, None);
    assert_eq!(twins.copied(&mut clients, "copy entries (account_id, amount) from stdin", b"").await, None);
    assert_eq!(
        twins.copied(&mut clients, "copy entries (account_id, amount) from stdin", b"1\t2\n\\.\nrubbish\n").await,
        None
    );
    // As psql before version 18 sends what stands in a script. From 18 on it is data, and an error here.
    let csv = "copy entries (account_id, amount) from stdin (format csv)";
    twins.copied(&mut clients, csv, b"1,2\n3,4\n\\.\nrubbish\n").await;
    // Binary, as PostgreSQL itself writes it.
    clients
        .0
        .say(|out| writer::query(out, b"copy (select account_id, amount, note from entries) to stdout (format binary)"))
        .await;
    let messages = clients.0.until_ready().await;
    let data: Vec<u8> = messages.iter().filter(|it| it.tag == b'd').flat_map(|it| it.body.clone()).collect();
    let sql = "copy entries (account_id, amount, note) from stdin (format binary)";
    assert_eq!(twins.copied(&mut clients, sql, &data).await, None);
    assert_eq!(twins.copied(&mut clients, "copy rates from stdin", b"x\t1.50\ny\t2\n").await, None);
    twins.is_same().await;
}

impl Twins {
    /// As [`Self::copied`], or refused by pgherd with nothing stored.
    async fn copied_or_refused(&self, clients: &mut (WireClient, WireClient), sql: &str, data: &[u8]) -> bool {
        let mut refusals = 0;
        for step in [data.len(), 1, 3] {
            let given = copy(&mut clients.1, sql, data, step).await;
            if given.0.as_deref() == Some("0A000") {
                refusals += 1;
                continue;
            }
            assert_eq!(copy(&mut clients.0, sql, data, step).await, given, "{sql} {}", data.escape_ascii());
        }
        self.is_same().await;
        assert!(matches!(refusals, 0 | 3), "{sql} {}: {refusals} of 3", data.escape_ascii());
        refusals == 0
    }
}

#[tokio::test]
async fn a_head_that_ends_with_a_carriage_return_takes_no_rows_along() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    for form in ["csv, delimiter '|'", "text, delimiter '|'"] {
        let sql = format!("copy entries (account_id, amount) from stdin (format {form}, header)");
        for data in ["a|b\r1|1\r2|2\r3|3\r", "a|b\r1|1\r2|2\r3|3", "a|b\r1|1\n2|2\n", "a|b\n1|1\r2|2\r", "a|b\r"] {
            assert!(!twins.copied_or_refused(&mut clients, &sql, data.as_bytes()).await, "{form} {data:?}");
        }
        for data in ["a|b\r\n1|1\r\n2|2\r\n3|3", "a|b\n1|1\n2|2\n3|3\n", "a|b", "a|b\n", ""] {
            assert_eq!(twins.copied(&mut clients, &sql, data.as_bytes()).await, None, "{form} {data:?}");
        }
    }
    let sql = "copy rates from stdin (format csv, header)";
    assert!(!twins.copied_or_refused(&mut clients, sql, b"code,rate\rx,1\ry,2\r").await);
    twins.is_same().await;
}

#[tokio::test]
async fn the_mark_that_ends_the_data_ends_them_where_postgresql_says() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let text = "copy entries (account_id, note, amount) from stdin (delimiter '|')";
    for data in [
        "1|one|1\n2|two|2\\.\n3|three|3\n12|twelve|12\n13|thirteen|13\n4|four|4\n",
        "1|a\\.|1\n2|b|2\n3|c|3\n",
        "1|a|1\n2|b|2\\.",
        "1|a|1\n\\.x\n2|b|2\n3|c|3\n",
        "1|a|1\n\\.\r\n2|b|2\n3|c|3\n",
        "1|a|1\r\n2|b|2\r\n\\.\n3|c|3\r\n",
    ] {
        assert!(!twins.copied_or_refused(&mut clients, text, data.as_bytes()).await, "{data:?}");
    }
    for data in [
        "1|a\\\\.|1\n2|b|2\n3|\\\\.|3\n4|d|4\n",
        "1|a|1\n2|b|2\n\\.\n3|c|3\n4|d|4\n",
        "1|a|1\r\n2|b|2\r\n\\.\r\n3|c|3\r\n",
        "1|a|1\n2|b|2\n3|c|3\n\\.",
        "\\.\n1|a|1\n2|b|2\n",
        "\\.",
        "1|a|1\n2|b|2\n3|c|3\n\\",
    ] {
        assert!(twins.copied_or_refused(&mut clients, text, data.as_bytes()).await, "{data:?}");
        let head = text.replace("(delim", "(header, delim");
        assert!(twins.copied_or_refused(&mut clients, &head, data.as_bytes()).await, "{data:?}");
    }
    for (sql, data) in [
        ("copy entries (account_id, amount) from stdin (format csv, delimiter '\\', quote '.')", "\\.\n1\\1\n2\\2\n"),
        ("copy entries (account_id, amount) from stdin (format csv, quote '\\')", "\\.\n1,1\n2,2\n"),
    ] {
        assert!(!twins.copied_or_refused(&mut clients, sql, data.as_bytes()).await, "{sql}");
    }
    let csv = "copy rates (code, rate) from stdin (format csv, delimiter '|', null 'none')";
    for (sql, data) in [
        (csv, "e|5\n\\.\nf|6\n"),
        (csv, "g|5\nh|6\n\\.|7\n"),
        (csv, "i|5\n\"j\n\\.\n\"|6\n"),
        (csv, "k|5\n\\."),
        (csv, "\\.\nl|5\n"),
    ] {
        assert!(twins.copied_or_refused(&mut clients, sql, data.as_bytes()).await, "{data:?}");
    }
}

#[tokio::test]
async fn a_mark_without_an_end_of_line_is_data_in_csv() {
    let twins = Twins::set(3).await;
    for database in twins.stage.shards.iter().chain([&twins.whole]) {
        database.execute("create table words (word text)").await;
    }
    let toml = twins.stage.toml.replacen(
        "[[database.table]]",
        "[[database.table]]\nname = \"public.words\"\nshard_key = \"word\"\nmethod = \"hash\"\n[[database.table]]",
        1,
    );
    let pgherd = Pgherd::start(&toml).await;
    let mut whole = WireClient::login(twins.whole.port, "postgres", &twins.whole.name).await;
    let mut client = pgherd.wire("app").await;
    for form in ["text", "csv"] {
        for data in
            ["a\n\\.", "a\n\\.\n", "a\n\\.\nb\n", "a\r\n\\.", "a\r\n\\.\r\nb\r\n", "\\.", "a\nb\n\\.c\nd\n", "\\.\n"]
        {
            for sql in [
                format!("copy words from stdin (format {form})"),
                format!("copy words from stdin (format {form}, header)"),
            ] {
                let mut seen = Vec::new();
                for one in [&mut whole, &mut client] {
                    let told = copy(one, &sql, data.as_bytes(), 2).await;
                    let words = rows(&one.query("select word from words order by word").await);
                    ok(one, "delete from words").await;
                    seen.push((told.0, told.2, words));
                }
                let is_refused = seen[1].0.as_deref() == Some("0A000") && seen[1].2.is_empty();
                assert!(
                    is_refused && form == "text" && data.contains("\\.c") || seen[0] == seen[1],
                    "{sql} {data:?}: {seen:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn nothing_may_follow_the_trailer_of_a_binary_copy() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let head = [&b"PGCOPY\n\xff\r\n\0"[..], &[0; 8]].concat();
    let row = |id: i32| {
        let mut row = vec![0, 2];
        row.extend_from_slice(
            &[&[0, 0, 0, 4][..], &id.to_be_bytes(), &[0, 0, 0, 8], &i64::from(id).to_be_bytes()].concat(),
        );
        row
    };
    let sql = "copy entries (account_id, amount) from stdin (format binary)";
    let (one, two, end) = (row(1), row(2), &b"\xff\xff"[..]);
    for (rest, code) in [
        (vec![], None),
        (b"x".to_vec(), Some("22P04")),
        (two.clone(), Some("22P04")),
        ([&head[..], &two, end].concat(), Some("22P04")),
    ] {
        let data = [&head[..], &one, &two, end, &rest].concat();
        assert_eq!(twins.copied(&mut clients, sql, &data).await.as_deref(), code, "{rest:?}");
    }
    // Without a trailer, and with half a row.
    assert_eq!(twins.copied(&mut clients, sql, &[&head[..], &one, &two].concat()).await, None);
    assert_eq!(twins.copied(&mut clients, sql, &[&head[..], &one, &two[..9]].concat()).await.as_deref(), Some("22P04"));
    twins.is_same().await;
}

#[tokio::test]
async fn a_bad_row_names_its_line_and_leaves_nothing_behind() {
    let twins = Twins::set(3).await;
    let mut clients = twins.clients().await;
    let sql = "copy entries (account_id, amount) from stdin";
    let rows = |bad: &str| {
        let mut rows: Vec<String> = (1..30).map(|at| format!("{at}\t{at}")).collect();
        rows[16] = bad.into();
        rows.join("\n") + "\n"
    };
    for bad in ["17\tx", "17", "17\t1\t2", "x\t1", "\\N\t1", "99999999999\t1"] {
        let code = twins.copied(&mut clients, sql, rows(bad).as_bytes()).await;
        assert!(code.is_some(), "{bad}");
    }
    let lines = "note,account_id,amount\n\"one\ntwo\",1,1\n\"three\",2,2\nfour,3,3\n\"five\nsix\",4,bad\n";
    let csv = "copy entries (note, account_id, amount) from stdin (format csv, header true)";
    assert_eq!(twins.copied(&mut clients, csv, lines.as_bytes()).await, Some("22P02".into()));
    twins.is_same().await;
    // In a transaction it fails that.
    let mut client = twins.pgherd.wire("app").await;
    ok(&mut client, "begin").await;
    ok(&mut client, "insert into entries (account_id, amount) values (1, 1), (2, 2), (3, 3)").await;
    assert_eq!(copy(&mut client, sql, b"1\t1\n2\t2\n3\t3\n4\t4\n", 5).await.2, "COPY 4");
    assert_eq!(
        copy(&mut client, sql, b"1\t1\n2\tx\n", 5).await,
        (Some("22P02".into()), Some("COPY entries, line 2, column amount: \"x\"".into()), String::new(), 'E')
    );
    assert_eq!(ok(&mut client, "commit").await, "ROLLBACK");
    // The client gives it up, or says something else.
    client.say(|out| writer::query(out, sql.as_bytes())).await;
    client.expect("G").await;
    client
        .say(|out| {
            writer::message(out, b'd', |out| out.put_slice(b"1\t1\n2\t2\n"));
            writer::message(out, b'f', |out| writer::cstr(out, b"changed my mind"));
        })
        .await;
    assert_eq!(told(&client.until_ready().await).0.as_deref(), Some("57014"));
    assert_eq!(ok(&mut client, "select 1").await, "SELECT 1");
    let mut leaves = twins.pgherd.wire("app").await;
    leaves.say(|out| writer::query(out, sql.as_bytes())).await;
    leaves.expect("G").await;
    leaves.say(|out| writer::message(out, b'd', |out| out.put_slice(b"1\t1\n2\t2\n"))).await;
    drop(leaves);
    twins.is_same().await;
}

#[tokio::test]
async fn drivers_copy_by_the_extended_protocol_and_go_on() {
    let twins = Twins::set(3).await;
    let mut wire = twins.pgherd.wire("app").await;
    for sql in ["copy entries (account_id, amount) from stdin", "select 1", "select count(*) from entries"] {
        wire.say(|out| {
            writer::parse(out, sql.as_bytes(), sql.as_bytes(), &[]);
            writer::describe(out, b'S', sql.as_bytes());
            writer::sync(out);
        })
        .await;
        wire.until_ready().await;
        wire.say(|out| {
            crate::harness::wire::bind(out, "", sql, &[], 0);
            writer::execute(out, b"", 0);
            writer::sync(out);
        })
        .await;
        if sql.starts_with("copy") {
            wire.expect("2G").await;
            wire.say(|out| {
                for part in 0..40 {
                    let rows: String = (0..250).map(|at| format!("{}\t{part}\n", part * 250 + at)).collect();
                    writer::message(out, b'd', |out| out.put_slice(rows.as_bytes()));
                }
                writer::message(out, b'c', |_| {});
                writer::sync(out);
            })
            .await;
        }
        assert_eq!(
            crate::harness::wire::tags(&wire.until_ready().await),
            if sql.starts_with("copy") { "CZ" } else { "2DCZ" }
        );
    }
    let client = twins.pgherd.client("app").await;
    for round in 1..3 {
        let sink = client.copy_in("copy entries (account_id, amount) from stdin").await.expect("a COPY");
        let mut sink = std::pin::pin!(sink);
        for part in 0..40 {
            let rows: String = (0..250).map(|at| format!("{}\t{part}\n", part * 250 + at)).collect();
            sink.send(Bytes::from(rows)).await.expect("sent");
        }
        assert_eq!(sink.finish().await.expect("copied"), 10_000);
        let count: i64 = client.query_one("select count(*) from entries", &[]).await.expect("a count").get(0);
        assert_eq!(count, 10_000 * (round + 1));
    }
    let sink = client.copy_in("copy entries (account_id, amount) from stdin").await.expect("a COPY");
    let mut sink = std::pin::pin!(sink);
    sink.send(Bytes::from_static(b"1\t1\n2\tbad\n")).await.expect("sent");
    let error = sink.finish().await.expect_err("a bad row");
    assert_eq!(error.code().map(|code| code.code()), Some("22P02"));
    let count: i64 = client.query_one("select count(*) from entries", &[]).await.expect("a count").get(0);
    assert_eq!(count, 30_000);
    let mut wire = twins.pgherd.wire("app").await;
    for sql in [
        "copy entries (amount) from stdin",
        "copy accounts (id, balance) from stdin",
        "copy entries from stdin where amount > 1",
        "copy entries from stdin (format csv, force_null (account_id))",
    ] {
        assert_eq!(say(&mut wire, sql).await.code(), Some("0A000"), "{sql}");
    }
    twins.stage.is_clean().await;
}
