//! Shapes of questions: whatever can be asked is answered from the cache as PostgreSQL answered it, by either protocol.

use tokio_postgres::types::{ToSql, Type};

use super::stage::{Stage, rows};
use crate::harness::wire::{bind, rows as wire_rows, tags};
use pgherd::wire::writer;

const SCENE: &str = "
create table t (a int, b text); insert into t select g, 'b' || g from generate_series(1, 10) g;
create table empty (a int, b text);
";

const SHAPES: [&str; 12] = [
    "table t",
    "values (1, 'x'), (2, 'y')",
    "select * from (values (1), (2)) v (n) where n > 1",
    "with x as (select a from t where a < 4) select sum(a) from x",
    "with recursive n (i) as (values (1) union all select i + 1 from n where i < 5) select i from n, t where a = 1",
    "select a from t where a < 3 union select a + 5 from t where a < 3 order by 1",
    "select a from t intersect select a * 2 from t order by 1",
    "select a from t except all select a * 2 from t order by 1",
    "select * from empty",
    "select a from t where false",
    "select from t where a < 4",
    "select a, count(*) over (order by a) from t order by a limit 3 offset 2",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_is_served_as_it_was_given() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let direct = stage.database.client().await;
    for text in SHAPES {
        assert_eq!(stage.why(&client, text).await, "cached: cacheable", "{text}");
        assert_eq!(stage.cached(&client, text).await, stage.truth(text).await, "{text}");
        // By the extended protocol, in binary.
        let statement = client.prepare(text).await.expect("prepared");
        let expected = direct.query(text, &[]).await.expect("rows").len();
        for _ in 0..3 {
            assert_eq!(client.query(&statement, &[]).await.expect("rows").len(), expected, "{text}");
        }
    }
    client.batch_execute("insert into empty values (1, 'now there is one')").await.expect("insert");
    assert_eq!(rows(&client, "select * from empty").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_executions_in_one_flight() {
    let stage = Stage::set(SCENE, &[]).await;
    let mut wire = stage.wire().await;
    let texts = ["select sum(a) from t", "select count(*) from empty", "select max(a) from t where a < $1"];
    for round in 0..4 {
        wire.say(|out| {
            for text in texts {
                writer::parse(out, b"", text.as_bytes(), &[]);
                let values: &[Option<&str>] = if text.contains('$') { &[Some("5")] } else { &[] };
                bind(out, "", "", values, 0);
                writer::describe(out, b'P', b"");
                writer::execute(out, b"", 0);
            }
            writer::sync(out);
        })
        .await;
        let messages = wire.until_ready().await;
        assert_eq!(tags(&messages), "12TDC12TDC12TDCZ", "round {round}");
        let expected = ["55", "0", "4"].map(|value| vec![Some(value.to_owned())]);
        assert_eq!(wire_rows(&messages), expected, "round {round}");
    }
    let stats = stage.fleet.stats(0);
    assert!(stats.memory_hits >= 6, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_are_told_apart_by_value() {
    let stage = Stage::set(SCENE, &[]).await;
    let client = stage.client("postgres").await;
    let statement = client
        .prepare_typed("select count(*), max($2) from t where a <= $1", &[Type::INT4, Type::TEXT])
        .await
        .expect("prepared");
    for _ in 0..3 {
        for limit in 0..5_i32 {
            for word in [None, Some(""), Some("x")] {
                let values: [&(dyn ToSql + Sync); 2] = [&limit, &word];
                let row = client.query_one(&statement, &values).await.expect("a row");
                let expected = if limit == 0 { None } else { word };
                assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<&str>>(1)), (i64::from(limit), expected));
            }
        }
    }
    assert!(stage.fleet.hits() >= 15);
}
