//! Suspended portals of statements over several shards: in their turn within a flight, and what savepoints make of them.

use pgherd::wire::writer;

use super::herd::Herd;
use crate::harness::wire::{WireClient, bind};

/// What a client sends in a flight.
#[derive(Debug, Clone, Copy)]
enum Sent {
    /// Parse and Bind of a portal of that name.
    Bind(&'static str, &'static str),
    /// Execute of it, with a row limit.
    Execute(&'static str, i32),
    /// Parse, Bind and Execute of the unnamed portal.
    Run(&'static str),
    /// A simple Query, alone in its flight.
    Query(&'static str),
}

/// Sends these flights one after the other. What comes back but notices: a row's values, a tag, what an error says, where the transaction
/// stands.
async fn transcript(client: &mut WireClient, flights: &[&[Sent]]) -> Vec<String> {
    let mut said = Vec::new();
    for flight in flights {
        client
            .say(|out| {
                for sent in *flight {
                    match *sent {
                        Sent::Bind(portal, text) => {
                            writer::parse(out, b"", text.as_bytes(), &[]);
                            bind(out, portal, "", &[], 0);
                        }
                        Sent::Execute(portal, rows) => writer::execute(out, portal.as_bytes(), rows),
                        Sent::Run(text) => {
                            writer::parse(out, b"", text.as_bytes(), &[]);
                            bind(out, "", "", &[], 0);
                            writer::execute(out, b"", 0);
                        }
                        Sent::Query(text) => return writer::query(out, text.as_bytes()),
                    }
                }
                writer::sync(out);
            })
            .await;
        for message in client.until_ready().await {
            let tag = char::from(message.tag);
            said.push(match message.tag {
                b'E' => format!("E {:?} {:?}", message.field(b'C'), message.field(b'M')),
                b'N' => continue,
                _ => format!("{tag} {}", String::from_utf8_lossy(&message.body).replace(|it: char| it < ' ', " ")),
            });
        }
    }
    said
}

/// Has both say what they say to these flights, each a transaction that is rolled back. How they differ, if they do; true if pgherd refuses
/// something, up to which they must be equal.
async fn compare(herd: &Herd, flights: &[&[Sent]]) -> Result<bool, String> {
    let mut said = Vec::new();
    for client in [&mut herd.oracle().await, &mut herd.client().await] {
        said.push(transcript(client, flights).await);
        client.query("rollback").await;
    }
    let (wanted, given) = (&said[0], &said[1]);
    let refused = given.iter().position(|message| message.contains("0A000"));
    let end = refused.unwrap_or(wanted.len().max(given.len()));
    match (0..end).find(|&at| wanted.get(at) != given.get(at)) {
        Some(at) => Err(format!("{flights:?}\n{at}: wanted {:?}\n given {:?}", &wanted[at..], &given[at..])),
        None => Ok(refused.is_some()),
    }
}

const ROWS: &str = "select id, region from sales order by id";
const GATHERED: &str = "select s.id, l.n from sales s join lines l on l.sale_id = s.id order by 1, 2 limit 20";

/// As [`compare`]; whatever is answered is equal.
async fn is_refused(herd: &Herd, flights: &[&[Sent]]) -> bool {
    compare(herd, flights).await.unwrap_or_else(|difference| panic!("{difference}"))
}

#[tokio::test]
async fn more_of_a_portal_comes_behind_what_was_asked_before_it() {
    let herd = Herd::start(2, false).await;
    for text in [ROWS, GATHERED] {
        for between in ["select 7", "select count(*) from sales where customer_id = 3", "select nosuch", "select 1 / 0"]
        {
            for (first, more) in [(2, 0), (1, 1)] {
                use Sent::{Bind, Execute, Run};
                let flight =
                    [Bind("p1", text), Execute("p1", first), Run(between), Execute("p1", more), Run("select 8")];
                assert!(!is_refused(&herd, &[&flight]).await, "{flight:?}");
                is_refused(&herd, &[&[Run("begin")], &flight]).await;
                is_refused(&herd, &[&[Run("begin"), Run("select 6")], &flight]).await;
                let later = [Run(between), Execute("p1", more), Run(between), Execute("p1", 0)];
                let begun = [Run("begin"), Bind("p1", text), Execute("p1", first)];
                assert!(!is_refused(&herd, &[&begun, &later]).await, "{later:?}");
                is_refused(&herd, &[&[Run("begin"), Run("select 6")], &begun[1..], &later]).await;
            }
        }
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn a_portal_of_before_a_savepoint_outlives_going_back_to_it() {
    use Sent::{Bind, Execute, Query, Run};
    let herd = Herd::start(2, false).await;
    let (mut differences, mut told, mut refused) = (Vec::new(), 0, 0);
    // No server knows of the transaction, one of none, one of the shards' does.
    for begun in [
        &[Run("begin")][..],
        &[Run("begin"), Run("select 6")],
        &[Run("begin"), Run("select count(*) from sales where customer_id = 3")],
    ] {
        for text in [ROWS, GATHERED] {
            let open = [Bind("p1", text), Execute("p1", 2)];
            let other = [Bind("p2", text), Execute("p2", 2)];
            let back = [Execute("p1", 1), Run("savepoint a"), Execute("p1", 3), Run("rollback to a"), Execute("p1", 2)];
            let released =
                [Run("savepoint a"), Bind("p2", text), Execute("p2", 2), Run("release a"), Run("savepoint b")];
            let again = [Run("rollback to a"), Execute("p1", 2)];
            let stories: Vec<Vec<&[Sent]>> = vec![
                vec![&open, &back],
                vec![&open, &back, &again, &again],
                // One that is opened behind the savepoint goes with it.
                vec![&[Run("savepoint a")], &open, &[Run("rollback to a")], &[Execute("p1", 1)]],
                vec![&[Run("savepoint a")], &open, &[Run("rollback to a"), Execute("p1", 1)]],
                vec![&open, &[Run("savepoint a")], &other, &again, &[Execute("p2", 1)]],
                vec![&[Run("savepoint a")], &open, &[Run("savepoint a")], &again, &[Run("release a")], &again],
                // What a savepoint had becomes that of the one before it.
                vec![&open, &released, &[Run("rollback to b"), Execute("p2", 1)], &[Execute("p1", 1)]],
                vec![&[Run("savepoint o")], &released, &[Run("rollback to o"), Execute("p2", 1)]],
                // Going back mends a transaction that has failed; a portal that failed is of no use.
                vec![&open, &[Run("savepoint a")], &[Run("select 1 / 0")], &[Execute("p1", 1)], &again],
                vec![&open, &[Run("savepoint a"), Run("select nosuch"), Execute("p1", 1)], &again],
                vec![&open, &[Run("savepoint a")], &[Run("rollback to nosuch")], &again],
                vec![&open, &[Run("savepoint a")], &[Execute("p1", 0)], &again],
                // One that was bound before it, and is executed behind it.
                vec![&open[..1], &[Run("savepoint a")], &[Execute("p1", 2)], &again, &[Execute("p1", 0)]],
                // In simple queries, and in strings of them.
                vec![
                    &open,
                    &[Query("savepoint a")],
                    &[Execute("p1", 1)],
                    &[Query("rollback to a")],
                    &[Execute("p1", 2)],
                ],
                vec![&open, &[Query("savepoint a; select 5")], &other, &[Query("rollback to a")], &[Execute("p1", 2)]],
                vec![&open, &[Run("savepoint a")], &[Query("savepoint b; select 1 / 0")], &again, &again],
                vec![&open, &[Run("savepoint a")], &[Query("select 1 / 0; commit")], &again, &again],
                vec![&open, &[Query("select 5; commit")], &[Execute("p1", 2)]],
                // The end of the transaction is the end of all.
                vec![
                    &open,
                    &[Run("create table twice (k int4 primary key deferrable initially deferred)")],
                    &[Run("insert into twice values (1), (1)"), Run("commit")],
                    &[Execute("p1", 1)],
                ],
                vec![&open, &[Run("savepoint a"), Run("commit"), Execute("p1", 1)]],
                vec![&open, &[Run("savepoint a")], &[Run("rollback")], &[Execute("p1", 1)]],
            ];
            for story in stories {
                let flights: Vec<&[Sent]> = std::iter::once(begun).chain(story).collect();
                match compare(&herd, &flights).await {
                    Ok(is_refused) => refused += usize::from(is_refused),
                    Err(difference) => differences.push(difference),
                }
                told += 1;
            }
        }
    }
    eprintln!("{refused} of {told} are refused");
    assert!(differences.is_empty(), "{} differ\n{}", differences.len(), differences.join("\n"));
    herd.comes_to_rest().await;
}
