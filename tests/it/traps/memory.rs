//! Groups that need more than `fanout.memory`: PostgreSQL merges them on the coordinator, as if that had been the plan from the start.

use std::time::Duration;

use pgherd::wire::writer;

use super::herd::Herd;
use crate::answers::{Answer, MANNERS, Manner, ask, ask_with};
use crate::harness::wire::{Message, WireClient, bind, tags};
use crate::harness::{self, Database};

const LITTLE: &str = "[fanout]\nmemory = \"64KiB\"\n";

/// 3000 groups of 1600 bytes, in an order that no shard can give.
const MANY: &str = "select repeat(md5(k::text), 50) as pad, count(*), max(v) from slow group by 1 order by 2, min(k)";

/// As many groups, of which little is shown or has to be held.
const STATEMENTS: [&str; 8] = [
    MANY,
    "select repeat(md5(k::text), 50), sum(v) from slow group by 1 having count(*) > 1 order by 2, count(*)",
    "select k % 2999, count(*), avg(v), sum(v), min(v) from slow group by 1 order by count(*) desc, k % 2999 limit 7 offset 2",
    "select distinct case when lower(k::text) collate \"C\" > '' then k % 2999 end, repeat('x', 30) from slow order by 1",
    "select k / 2, max(repeat(v::text, 9)) from slow group by 1 order by max(repeat(v::text, 9)), 1",
    "select k % 2999 from slow group by 1 order by max(repeat(md5(k::text), 30)), 1",
    "select id, max(region), min(day) from sales group by id order by max(region), 1",
    "select id, max(repeat(region, 40)) from recent group by id order by max(repeat(region, 40)), 1 desc limit 9",
];

/// A statement that fits.
const FEW: &str = "select v % 5, count(*) from slow group by 1 order by 2 desc, 1";

/// A herd with little memory and a coordinator of its own.
async fn herd(rest: &str) -> (Herd, Database) {
    let coordinator = harness::fresh_database().await;
    coordinator.execute("create type mood as enum ('sad', 'ok', 'happy')").await;
    let keys = format!("coordinator = \"{}\"\n", coordinator.conninfo());
    let herd = Herd::with_keys(harness::fresh_databases(2).await, &keys, &format!("{LITTLE}{rest}")).await;
    harness::eventually(Duration::from_secs(20), "the coordinator's catalog is known", async || {
        ask(
            &mut herd.client().await,
            Manner::Simple,
            "select percentile_disc(0.5) within group (order by k) from nothing",
        )
        .await
        .error
        .is_none()
    })
    .await;
    (herd, coordinator)
}

/// How many statements were given up for what they hold.
async fn fallbacks(herd: &Herd) -> f64 {
    herd.pgherd.metric("pgherd_fanout_fallbacks_total", "reason=\"memory\"").await
}

/// Asks both in one manner; they say the same, and so many statements more were given up.
async fn same(herd: &Herd, client: &mut WireClient, manner: Manner, text: &str, more: f64) -> Answer {
    let before = fallbacks(herd).await;
    let (wanted, given) = (ask(&mut herd.oracle().await, manner, text).await, ask(client, manner, text).await);
    assert_eq!(given.error, None, "{text} {manner:?}");
    assert_eq!(Answer { status: wanted.status, ..given.clone() }, wanted, "{text} {manner:?}");
    assert_eq!(fallbacks(herd).await - before, more, "{text} {manner:?}");
    given
}

/// What fits still streams, and nothing is held or left anywhere.
async fn is_well(herd: &Herd, coordinator: &Database) {
    same(herd, &mut herd.client().await, Manner::Text, FEW, 0.0).await;
    herd.comes_to_rest().await;
    let left = "select count(*) from pg_class where relpersistence = 't' and relkind = 'r'";
    let observer = coordinator.client().await;
    harness::eventually(Duration::from_secs(20), "the coordinator is empty", async || {
        observer.query_one(left, &[]).await.expect("left").get::<_, i64>(0) == 0
    })
    .await;
}

#[tokio::test]
async fn groups_beyond_the_memory_allowed_are_merged_by_postgresql() {
    let (herd, coordinator) = herd("[cache]\nenabled = false\n").await;
    let mut client = herd.client().await;
    for text in STATEMENTS {
        for manner in MANNERS {
            same(&herd, &mut client, manner, text, 1.0).await;
        }
    }
    let text = "select k % $1::int4, count(*) from slow where v < $2 group by 1 order by count(*) desc, 1";
    for manner in [Manner::Text, Manner::Binary, Manner::Prepared] {
        let values = [Some("2500"), Some("90")];
        let wanted = ask_with(&mut herd.oracle().await, manner, text, &values).await;
        assert_eq!(wanted.rows.len(), 2250, "{wanted:?}");
        assert_eq!(ask_with(&mut client, manner, text, &values).await, wanted, "{manner:?}");
    }
    is_well(&herd, &coordinator).await;
}

/// The tags of an answer: runs of DataRow as one.
fn shape(messages: &[Message]) -> String {
    let mut shape = tags(messages);
    while shape.contains("DD") {
        shape = shape.replace("DD", "D");
    }
    shape
}

#[tokio::test]
async fn the_messages_are_those_of_one_postgresql() {
    let (herd, coordinator) = herd("[cache]\nenabled = false\n").await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let failing = "select repeat(md5(k::text), 50), sum(1 / (k - 3000)) from slow group by 1 order by 2, min(k)";
    for text in [MANY, failing] {
        let (wanted, given) = (oracle.query(text).await, client.query(text).await);
        assert_eq!(shape(&given), shape(&wanted), "{text}");
        assert_eq!(Answer::read(&given), Answer::read(&wanted), "{text}");
    }
    // Some rows of the portal, and the rest; in a transaction, in which a later flight goes on.
    for rows in [1, 7, 2999] {
        let mut said = Vec::new();
        for client in [&mut oracle, &mut client] {
            client.query("begin").await;
            client
                .say(|out| {
                    writer::parse(out, b"", MANY.as_bytes(), &[]);
                    bind(out, "p", "", &[], 1);
                    writer::describe(out, b'P', b"p");
                    writer::execute(out, b"p", rows);
                    writer::sync(out);
                })
                .await;
            let some = client.until_ready().await;
            client
                .say(|out| {
                    writer::execute(out, b"p", 0);
                    writer::sync(out);
                })
                .await;
            let rest = client.until_ready().await;
            client.query("commit").await;
            said.push((shape(&some), Answer::read(&some), shape(&rest), Answer::read(&rest)));
        }
        assert_eq!(said[1], said[0], "{rows} rows");
        assert_eq!(said[1].1.rows.len(), usize::try_from(rows).expect("small"));
    }
    // A portal that is given up half way keeps nothing.
    client.query("begin").await;
    client
        .say(|out| {
            writer::parse(out, b"", MANY.as_bytes(), &[]);
            bind(out, "p", "", &[], 0);
            writer::execute(out, b"p", 3);
            writer::sync(out);
        })
        .await;
    assert_eq!(Answer::read(&client.until_ready().await).rows.len(), 3);
    client.query("rollback").await;
    is_well(&herd, &coordinator).await;
}

#[tokio::test]
async fn a_transaction_goes_on_after_it() {
    let (herd, coordinator) = herd("[cache]\nenabled = false\n").await;
    let mut client = herd.client().await;
    let say = async |client: &mut WireClient, text: &str| Answer::read(&client.query(text).await);
    for manner in MANNERS {
        assert_eq!(say(&mut client, "begin").await.status, 'T');
        assert_eq!(same(&herd, &mut client, manner, MANY, 1.0).await.status, 'T');
        assert_eq!(say(&mut client, "savepoint s").await.error, None);
        assert_eq!(same(&herd, &mut client, manner, MANY, 1.0).await.status, 'T');
        assert_eq!(say(&mut client, "update slow set v = v where k = 7").await.tag, "UPDATE 1");
        assert_eq!(say(&mut client, "commit").await.tag, "COMMIT");
    }
    // Over several shards there is no snapshot for these: as ever.
    for begin in ["begin isolation level repeatable read", "begin isolation level serializable"] {
        assert_eq!(say(&mut client, begin).await.status, 'T');
        let refused = ask(&mut client, Manner::Simple, MANY).await;
        assert_eq!((refused.code(), refused.status), (Some("0A000"), 'E'), "{begin}");
        say(&mut client, "rollback").await;
    }
    is_well(&herd, &coordinator).await;
}

#[tokio::test]
async fn what_holds_a_query_gets_its_rows() {
    let (herd, coordinator) = herd("[cache]\nenabled = false\n").await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let copy = format!("copy ({MANY}) to stdout");
    let rows = |messages: Vec<Message>| -> Vec<Vec<u8>> {
        messages.into_iter().filter(|message| message.tag == b'd').map(|message| message.body).collect()
    };
    let (wanted, given) = (rows(oracle.query(&copy).await), rows(client.query(&copy).await));
    assert_eq!((given.len(), given == wanted), (3000, true));
    for client in [&mut oracle, &mut client] {
        client.query("begin").await;
        client.query(&format!("declare c cursor for {MANY}")).await;
    }
    for fetch in ["fetch 5 from c", "move 2000 in c", "fetch all from c"] {
        assert_eq!(Answer::read(&client.query(fetch).await), Answer::read(&oracle.query(fetch).await), "{fetch}");
    }
    client.query("commit").await;
    oracle.query("commit").await;
    // Of many groups two go into a table of the primary, and make one there.
    let groups = "select k % 2998 from slow group by 1 having count(*) > 1 order by count(*)";
    for manner in MANNERS {
        let before = fallbacks(&herd).await;
        let inserted = ask(&mut client, manner, &format!("insert into local_notes {groups}")).await;
        assert_eq!((inserted.error, inserted.tag.as_str()), (None, "INSERT 0 2"), "{manner:?}");
        assert_eq!(fallbacks(&herd).await - before, 1.0, "{manner:?}");
    }
    let made = ask(&mut client, Manner::Simple, &format!("create table made as {groups}")).await;
    assert_eq!((made.error, made.tag.as_str()), (None, "SELECT 2"));
    let notes = ask(&mut client, Manner::Simple, "select sum(id) from local_notes where id < 3").await;
    assert_eq!(notes.column(0), [Some("13".into())], "one that was there, and four times 1 and 2");
    // How it has run is told as it has: PostgreSQL's own plan of it on the coordinator.
    for (explain, is_given_up) in [("explain", false), ("explain analyze", true)] {
        let plan = ask(&mut client, Manner::Simple, &format!("{explain} {MANY}")).await;
        let lines: Vec<String> = plan.column(0).into_iter().flatten().collect();
        let says_so = lines.iter().any(|line| line.contains("Streaming was given up"));
        assert_eq!((plan.error, says_so), (None, is_given_up), "{explain}: {lines:?}");
    }
    is_well(&herd, &coordinator).await;
}

#[tokio::test]
async fn without_a_coordinator_it_is_refused_and_the_shards_are_free() {
    let herd = Herd::over(harness::fresh_databases(2).await, &format!("{LITTLE}[cache]\nenabled = false\n")).await;
    let mut client = herd.client().await;
    for manner in MANNERS {
        let refused = ask(&mut client, manner, MANY).await;
        assert_eq!((refused.code(), refused.status, refused.rows.len()), (Some("54000"), 'I', 0), "{manner:?}");
        assert!(refused.error.is_some_and(|(_, message)| message.contains("fanout.memory (65536 bytes)")));
        same(&herd, &mut client, manner, FEW, 0.0).await;
    }
    let messages = client.query(MANY).await;
    let hint = messages.iter().find_map(|message| message.field(b'H').filter(|_| message.tag == b'E'));
    assert!(hint.as_ref().is_some_and(|hint| hint.contains("fanout.memory") && hint.contains("database.coordinator")));
    let explained = ask(&mut client, Manner::Simple, &format!("explain analyze {MANY}")).await;
    assert_eq!((explained.code(), explained.status), (Some("54000"), 'I'));
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn what_is_too_much_to_ship_then_is_refused_by_name() {
    let (herd, coordinator) = herd("max_shipped_rows = 2000\nkey_list_max = 0\n[cache]\nenabled = false\n").await;
    let mut client = herd.client().await;
    for manner in MANNERS {
        let refused = ask(&mut client, manner, MANY).await;
        assert_eq!((refused.code(), refused.status, refused.rows.len()), (Some("54000"), 'I', 0), "{manner:?}");
        let message = refused.error.unwrap_or_default().1;
        assert!(message.contains("ship"), "{manner:?}: {message}");
    }
    client.query("begin").await;
    let refused = ask(&mut client, Manner::Simple, MANY).await;
    assert_eq!((refused.code(), refused.status), (Some("54000"), 'E'));
    client.query("rollback").await;
    is_well(&herd, &coordinator).await;
}

#[tokio::test]
async fn what_the_shards_caches_keep_stays_right() {
    let (herd, coordinator) = herd("[cache]\nenabled = true\nolap_only = false\nshards = true\n").await;
    let mut oracle = herd.oracle().await;
    let mut client = herd.client().await;
    for turn in 0..3 {
        for manner in MANNERS {
            same(&herd, &mut client, manner, MANY, 1.0).await;
            same(&herd, &mut client, manner, FEW, 0.0).await;
        }
        let write = format!("update slow set v = v + 1000 where k = {}", 10 + turn);
        for client in [&mut oracle, &mut client] {
            assert_eq!(Answer::read(&client.query(&write).await).tag, "UPDATE 1");
        }
    }
    // Several who ask at once get the same.
    let wanted = ask(&mut oracle, Manner::Binary, MANY).await;
    let ask_it = async || ask(&mut herd.client().await, Manner::Binary, MANY).await;
    let answers = tokio::join!(ask_it(), ask_it(), ask_it());
    for answer in [answers.0, answers.1, answers.2] {
        assert!(answer == wanted, "{:?}", answer.error);
    }
    is_well(&herd, &coordinator).await;
}
