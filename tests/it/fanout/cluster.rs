//! The same data twice: spread over shards, and whole on one PostgreSQL that is the oracle.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use pgherd::catalog::model::Catalog;
use pgherd::config::dsn;
use pgherd::config::model::{Database as Configured, Distribution, ListPart, Pool, PoolMode, RangePart, Reads, Table};
use pgherd::exec::fanout::{self, Failure, Run};
use pgherd::exec::merge::ResultFormats;
use pgherd::plan::Refusal;
use pgherd::plan::distribute::{self, Distributed, Input, Parameters, Session};
use pgherd::wire::frame::{Body, Frame};
use tokio_util::sync::CancellationToken;

use super::leg::{Collected, Wire};
use crate::harness::{self, Database};

pub struct Cluster {
    pub whole: Database,
    pub shards: Vec<Database>,
    pub catalog: Catalog,
    pub configured: Configured,
    pub pure_functions: Vec<String>,
    /// Connections to shards, and to the whole (`None`), that lie idle.
    idle: Mutex<Vec<(Option<usize>, Wire)>>,
}

/// Tables and rows; `%shards%` and `%shard%` stand for how many there are and which this is.
const SCHEMA: &str = include_str!("schema.sql");

fn pool() -> Pool {
    Pool {
        mode: PoolMode::Transaction,
        max_connections: 10,
        min_connections: 0,
        max_database_connections: None,
        acquire_timeout: Duration::from_secs(5),
        idle_timeout: None,
        max_lifetime: None,
        connect_timeout: Duration::from_secs(5),
        health_check_interval: Duration::from_secs(60),
        query_timeout: None,
        idle_transaction_timeout: None,
        client_idle_timeout: None,
        prepared_statements: 100,
        pinned_max: None,
        listen: pgherd::config::model::ListenMode::Shared,
        on_listener_loss: pgherd::config::model::OnListenerLoss::Close,
        notification_queue: 1 << 20,
    }
}

fn tables(shards: usize) -> Vec<Table> {
    let table =
        |name: &str, distribution| Table { schema: "public".into(), name: name.into(), distribution, group: None };
    let columns = |key: &[&str]| key.iter().map(|column| (*column).to_owned()).collect::<Vec<_>>();
    let hash = |column: &str| Distribution::Hash { columns: columns(&[column]) };
    // Days of January 2024 in equal parts; the last part takes what is left.
    let day = |part: usize| Some(vec![format!("2024-01-{:02}", 1 + part * 8)]);
    let ranges = (0..shards)
        .map(|part| RangePart {
            from: if part == 0 { None } else { day(part) },
            to: if part + 1 == shards { None } else { day(part + 1) },
            shard: part,
        })
        .collect();
    let mut parts: BTreeMap<usize, Vec<Option<String>>> = BTreeMap::new();
    for (at, plan) in ["free", "basic", "pro", "vip"].iter().enumerate() {
        parts.entry(at % shards).or_default().push(Some((*plan).to_owned()));
    }
    parts.entry(shards - 1).or_default().push(None);
    let parts = parts.into_iter().map(|(shard, values)| ListPart { values, shard }).collect();
    vec![
        table("orders", hash("customer_id")),
        table("items", hash("customer_id")),
        table("notes", hash("id")),
        table("texts", hash("k")),
        table("empty", hash("k")),
        table("visits", Distribution::Range { columns: columns(&["day"]), ranges, default: None }),
        table("accounts", Distribution::List { column: "plan".into(), parts, default: None }),
        table("pairs", Distribution::Hash { columns: columns(&["a", "b"]) }),
        table("halves", Distribution::Hash { columns: columns(&["x", "y"]) }),
        table("grid", grid(shards)),
        table("tiers", tiers(shards)),
        table("countries", Distribution::Reference),
    ]
}

/// Cells below (10) on the first shard, those from there to (20, 2024-01-10) on the second, all others on the last.
fn grid(shards: usize) -> Distribution {
    let bound = |values: &[&str]| Some(values.iter().map(|value| (*value).to_owned()).collect());
    let ranges = vec![
        RangePart { from: None, to: bound(&["10"]), shard: 0 },
        RangePart { from: bound(&["10"]), to: bound(&["20", "2024-01-10"]), shard: 1 % shards },
    ];
    Distribution::Range { columns: vec!["x".into(), "y".into()], ranges, default: Some(shards - 1) }
}

/// Two values on the first shard, all others on the last.
fn tiers(shards: usize) -> Distribution {
    let values = ["low", "high"].map(|value| Some(value.to_owned())).to_vec();
    Distribution::List { column: "tier".into(), parts: vec![ListPart { values, shard: 0 }], default: Some(shards - 1) }
}

/// What a statement answered, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Name, type, type modifier and format of each column.
    pub columns: Vec<(String, i32, i32, i16)>,
    pub rows: Vec<Vec<Option<Vec<u8>>>>,
    pub tag: String,
    /// SQLSTATE and message.
    pub error: Option<(String, String)>,
}

pub fn answer(frames: &[Frame]) -> Answer {
    let mut answer = Answer { columns: Vec::new(), rows: Vec::new(), tag: String::new(), error: None };
    for frame in frames {
        let mut body = Body::new(frame.body());
        match frame.tag() {
            b'T' => {
                for _ in 0..body.i16().expect("count") {
                    let name = String::from_utf8(body.cstr().expect("name").to_vec()).expect("utf8");
                    let (_table, _attribute, oid) = (body.i32(), body.i16(), body.i32().expect("type"));
                    let (_size, typmod, format) =
                        (body.i16(), body.i32().expect("typmod"), body.i16().expect("format"));
                    answer.columns.push((name, oid, typmod, format));
                }
            }
            b'D' => {
                let count = body.i16().expect("count");
                let row = (0..count).map(|_| match body.i32().expect("length") {
                    -1 => None,
                    len => Some(body.bytes(len as usize).expect("value").to_vec()),
                });
                answer.rows.push(row.collect());
            }
            b'C' => answer.tag = String::from_utf8(body.cstr().expect("tag").to_vec()).expect("utf8"),
            b'E' => answer.error = Some(error(frame)),
            _ => {}
        }
    }
    answer
}

pub fn error(frame: &Frame) -> (String, String) {
    let mut body = Body::new(frame.body());
    let mut fields = BTreeMap::new();
    while let Some(code) = body.u8().filter(|&code| code != 0) {
        fields.insert(code, String::from_utf8_lossy(body.cstr().expect("field")).into_owned());
    }
    (fields.remove(&b'C').unwrap_or_default(), fields.remove(&b'M').unwrap_or_default())
}

fn shown(row: &[Option<Vec<u8>>]) -> Vec<String> {
    row.iter().map(|value| value.as_ref().map_or("NULL".into(), |value| value.escape_ascii().to_string())).collect()
}

impl Cluster {
    pub async fn start(shards: usize) -> Self {
        let whole = harness::fresh_database().await;
        let databases = harness::fresh_databases(shards).await;
        let fill = |shards: usize, shard: usize| {
            SCHEMA.replace("%shards%", &shards.to_string()).replace("%shard%", &shard.to_string())
        };
        whole.execute(&fill(1, 0)).await;
        for (at, database) in databases.iter().enumerate() {
            database.execute(&fill(shards, at)).await;
        }
        let catalog = pgherd::catalog::load::load(&databases[0].client().await).await.expect("catalog");
        let address = |database: &Database| dsn::parse(&database.conninfo()).expect("dsn");
        let configured = Configured {
            name: "app".into(),
            max_clients: None,
            primary: address(&whole),
            replicas: Vec::new(),
            reads: Reads::Primary,
            shards: databases.iter().map(address).collect(),
            coordinator: None,
            tables: tables(shards),
            schemas: None,
            pool: pool(),
            cache: false,
            replication: false,
            olap_timeout: Duration::from_secs(30),
            split_scans: None,
            two_phase: None,
        };
        Self { whole, shards: databases, catalog, configured, pure_functions: Vec::new(), idle: Mutex::new(Vec::new()) }
    }

    pub fn plan(&self, text: &str, parameters: Option<Parameters<'_>>) -> Result<Distributed, Refusal> {
        let facts = super::facts(text);
        let statement = facts.single().unwrap_or_else(|| panic!("one statement: {text}"));
        let search_path: Vec<Box<str>> = vec!["pg_catalog".into(), "public".into()];
        distribute::plan(&Input {
            text,
            statement,
            catalog: &self.catalog,
            database: &self.configured,
            search_path: &search_path,
            pure_functions: &self.pure_functions,
            key_moves: pgherd::config::model::KeyMoves::Refuse,
            session: Session::default(),
            parameters,
            coordinator: None,
            unstreamed: None,
            split: None,
        })
    }

    pub async fn legs(&self, shards: &[usize]) -> Vec<Wire> {
        let mut legs = Vec::new();
        for &shard in shards {
            legs.push(self.wire(Some(shard)).await);
        }
        legs
    }

    /// A connection to a shard or to the whole: one that lies idle, else a new one.
    async fn wire(&self, shard: Option<usize>) -> Wire {
        let known = {
            let mut idle = self.idle.lock().expect("no panic");
            idle.iter().position(|(at, _)| *at == shard).map(|found| idle.swap_remove(found).1)
        };
        match known {
            Some(wire) => wire,
            None => Wire::connect(shard.map_or(&self.whole, |shard| &self.shards[shard])).await,
        }
    }

    fn give_back(&self, shard: Option<usize>, wire: Wire) {
        self.idle.lock().expect("no panic").push((shard, wire));
    }

    async fn untouched(
        &self,
        shard: Option<usize>,
        text: &str,
        types: &[u32],
        values: &[Option<&[u8]>],
        formats: &[i16],
    ) -> Answer {
        let mut wire = self.wire(shard).await;
        let answer = answer(&wire.extended(text, types, values, formats).await);
        self.give_back(shard, wire);
        answer
    }

    /// What one PostgreSQL with all rows answers.
    pub async fn oracle(&self, text: &str, types: &[u32], values: &[Option<&[u8]>], formats: &[i16]) -> Answer {
        self.untouched(None, text, types, values, formats).await
    }

    /// What pgherd's plan gives; every leg is idle afterwards.
    pub async fn distributed(
        &self,
        text: &str,
        types: &[u32],
        values: &[Option<&[u8]>],
        formats: &[i16],
    ) -> Result<Answer, Refusal> {
        match self.plan(text, Some(Parameters { types, formats: &[], values }))? {
            Distributed::Shard { shard, .. } => Ok(self.untouched(Some(shard), text, types, values, formats).await),
            Distributed::Streamed(plan) => {
                let mut legs = self.legs(&plan.shards).await;
                let run = Run {
                    plan: &plan,
                    types,
                    parameter_formats: &[],
                    values,
                    formats: ResultFormats { codes: formats, extra_float_digits: 1 },
                    describe: true,
                    told: None,
                    max_rows: None,
                    unanswered: b"",
                    standard_conforming_strings: true,
                    memory_bytes: 16 * 1024 * 1024,
                    max_parallel: 2,
                    drain_timeout: Duration::from_secs(60),
                };
                let mut sink = Collected::default();
                let outcome = fanout::run(&run, &mut legs, &mut sink, &CancellationToken::new()).await;
                assert!(outcome.broken.is_empty(), "{text}: {outcome:?}");
                for (mut leg, &shard) in legs.into_iter().zip(&plan.shards) {
                    assert!(leg.is_idle().await, "{text}");
                    self.give_back(Some(shard), leg);
                }
                let mut given = answer(&sink.frames());
                match outcome.result {
                    Ok(rows) => assert_eq!(rows as usize, given.rows.len(), "{text}"),
                    Err(Failure::Server(frame)) => given.error = Some(error(&frame)),
                    Err(Failure::Own(error) | Failure::Unmergeable(_, error)) => {
                        given.error = Some((error.sqlstate().to_string(), error.message().to_owned()))
                    }
                }
                Ok(given)
            }
            other => panic!("{text}: {other:?}"),
        }
    }

    /// Asserts that the answer is the oracle's, in text and in binary form; in the same order where the statement has one.
    pub async fn same(&self, text: &str) {
        self.same_with(text, &[], &[]).await;
    }

    pub async fn same_with(&self, text: &str, types: &[u32], values: &[Option<&[u8]>]) {
        for formats in [&[0][..], &[1]] {
            let mut wanted = self.oracle(text, types, values, formats).await;
            let mut given = self
                .distributed(text, types, values, formats)
                .await
                .unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"));
            let is_ordered = text.rfind("order by").is_some_and(|at| !text[at..].contains("from"));
            if !is_ordered {
                wanted.rows.sort();
                given.rows.sort();
            }
            assert_eq!(wanted.error, None, "{text}");
            for (at, (given, wanted)) in given.rows.iter().zip(&wanted.rows).enumerate() {
                assert_eq!(
                    shown(given),
                    shown(wanted),
                    "row {at} of {text} over {} shards, formats {formats:?}",
                    self.shards.len()
                );
            }
            assert_eq!((&given.error, &given.tag), (&None, &wanted.tag), "{text}");
            assert_eq!(given, wanted, "{text} over {} shards, formats {formats:?}", self.shards.len());
        }
    }
}
