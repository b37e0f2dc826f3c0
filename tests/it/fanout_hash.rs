//! The hash that picks a shard is PostgreSQL's own: every value goes to the partition that `satisfies_hash_partition` names.

use pgherd::plan::hash;
use pgherd::plan::value::{Kind, Value};
use tokio_postgres::SimpleQueryMessage;

use crate::harness;

/// A prime, so that a wrong bit anywhere moves the remainder.
const MODULUS: usize = 97;

struct Case {
    kind: Kind,
    sql: &'static str,
    send: &'static str,
    /// A query of one column `v` with at least a hundred values.
    values: &'static str,
}

const CASES: &[Case] = &[
    Case { kind: Kind::Int2, sql: "int2", send: "int2send", values: "select (g * 131 - 32768)::int2 v from generate_series(0, 499) g" },
    Case {
        kind: Kind::Int4,
        sql: "int4",
        send: "int4send",
        values: "select (g * 8589934 - 2147483648)::int4 v from generate_series(0::int8, 499) g",
    },
    Case {
        kind: Kind::Int8,
        sql: "int8",
        send: "int8send",
        values: "select (g * 36028797018963968 - 9223372036854775808)::int8 v from generate_series(0::numeric, 511) g
                 union all select g from generate_series(-100, 100) g union all values (-9223372036854775808), (9223372036854775807)",
    },
    Case {
        kind: Kind::Numeric,
        sql: "numeric",
        send: "numeric_send",
        values: "select (g - 250)::numeric / 7 v from generate_series(0, 500) g
                 union all select round((g - 250)::numeric * 1000, g % 7) from generate_series(0, 500) g
                 union all select power(10::numeric, g) from generate_series(-40, 200) g
                 union all select -power(7::numeric, g) * 1.000 from generate_series(0, 100) g
                 union all select v::numeric from unnest(array['0', '-0', '0.000', 'NaN', 'Infinity', '-Infinity', '1.0', '1.00', '10000',
                   '100000000.0000', '0.0001', '0.00010', '1e1000', '-1e-1000']) v",
    },
    Case {
        kind: Kind::Text,
        sql: "text",
        send: "textsend",
        values: "select repeat('ab', g % 50) || g::text v from generate_series(0, 300) g
                 union all select left('abcdefghijklmnopqrstuvwxyzABCDEFGH', g) from generate_series(0, 34) g
                 union all values ('Ünïcödé'), ('日本語'), ('🐘🐘🐘'), (' '), ('a ')",
    },
    Case { kind: Kind::Varchar, sql: "varchar", send: "varcharsend", values: "select left('日本語 and more', g % 14)::varchar || g v from generate_series(0, 200) g" },
    Case {
        kind: Kind::Bpchar,
        sql: "char(12)",
        send: "bpcharsend",
        values: "select (left('日本語 and more', g % 12) || g % 10)::char(12) v from generate_series(0, 200) g union all select ''",
    },
    Case { kind: Kind::Uuid, sql: "uuid", send: "uuid_send", values: "select md5(g::text)::uuid v from generate_series(0, 300) g" },
    Case {
        kind: Kind::Bytea,
        sql: "bytea",
        send: "byteasend",
        values: "select substr(sha256(g::text::bytea), 1, g % 33) v from generate_series(0, 300) g",
    },
    Case { kind: Kind::Bool, sql: "bool", send: "boolsend", values: "select g % 2 = 0 v from generate_series(0, 100) g" },
    Case {
        kind: Kind::Date,
        sql: "date",
        send: "date_send",
        values: "select '0001-01-01'::date + g * 9137 v from generate_series(0, 399) g union all select v::date from unnest(array['infinity', '-infinity', '2024-02-29']) v",
    },
    Case {
        kind: Kind::Timestamp,
        sql: "timestamp",
        send: "timestamp_send",
        values: "select '1600-01-01'::timestamp + g * interval '711 days 13:14:15.161718' v from generate_series(0, 399) g
                 union all select v::timestamp from unnest(array['infinity', '-infinity', '2000-01-01']) v",
    },
    Case {
        kind: Kind::TimestampTz,
        sql: "timestamptz",
        send: "timestamptz_send",
        values: "select '1600-01-01 00:00+00'::timestamptz + g * interval '711 days 13:14:15.161718' v from generate_series(0, 399) g
                 union all select v::timestamptz from unnest(array['infinity', '-infinity', '2000-01-01 00:00:00+05:30']) v",
    },
];

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
}

#[tokio::test]
async fn every_value_goes_where_postgresql_puts_it() {
    let database = harness::fresh_database().await;
    let client = database.client().await;
    client.batch_execute("set timezone = 'Asia/Kolkata'").await.expect("timezone");
    for case in CASES {
        let (sql, send, values) = (case.sql, case.send, case.values);
        client
            .batch_execute(&format!("drop table if exists t; create table t (v {sql}) partition by hash (v)"))
            .await
            .expect("table");
        let query = format!(
            "select v::text, encode({send}(v), 'hex'),
               (select r from generate_series(0, {MODULUS} - 1) r where satisfies_hash_partition('t'::regclass, {MODULUS}, r, v))
             from (select v::{sql} v from ({values}) x) y"
        );
        let mut seen = 0;
        for message in client.simple_query(&query).await.expect(sql) {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let (text, binary, wanted) =
                (row.get(0).expect("text"), unhex(row.get(1).expect("hex")), row.get(2).expect("one"));
            let wanted: usize = wanted.parse().expect("remainder");
            let from_binary = Value::from_binary(case.kind, &binary).unwrap_or_else(|| panic!("{sql} {text}"));
            assert_eq!(hash::remainder(&[(case.kind, Some(&from_binary))], MODULUS), Some(wanted), "{sql} {text}");
            match Value::parse(case.kind, text) {
                Some(from_text) => assert_eq!(from_text, from_binary, "{sql} {text}"),
                // Years of five digits and offsets with seconds are spellings that are left to PostgreSQL.
                None => assert!(matches!(case.kind, Kind::Date | Kind::Timestamp | Kind::TimestampTz), "{sql} {text}"),
            }
            seen += 1;
        }
        assert!(seen > 100, "{sql}: {seen}");
    }
}

#[tokio::test]
async fn integers_of_every_width_hash_alike_and_null_is_remainder_zero() {
    for value in [-32768_i64, -1, 0, 1, 32767] {
        let of = |kind| hash::remainder(&[(kind, Some(&Value::Int(value)))], MODULUS);
        assert!(of(Kind::Int2).is_some());
        assert_eq!(of(Kind::Int2), of(Kind::Int8));
        assert_eq!(of(Kind::Int4), of(Kind::Int8));
    }
    let database = harness::fresh_database().await;
    let client = database.client().await;
    client.batch_execute("create table t (v int) partition by hash (v)").await.expect("table");
    let row = client
        .query_one("select satisfies_hash_partition('t'::regclass, 97, 0, null::int)", &[])
        .await
        .expect("one row");
    assert!(row.get::<_, bool>(0));
    assert_eq!(hash::remainder(&[(Kind::Int4, None)], MODULUS), Some(0));
    assert_eq!(hash::remainder(&[(Kind::Float8, Some(&Value::Float(1.0)))], MODULUS), None);
}

#[tokio::test]
async fn keys_of_several_columns_hash_as_postgresql_combines_them() {
    let database = harness::fresh_database().await;
    let client = database.client().await;
    client.batch_execute("create table t (a int4, b text, c uuid) partition by hash (a, b, c)").await.expect("table");
    let rows = client
        .query(
            "select a, b, c::text, (select r from generate_series(0, 96) r where satisfies_hash_partition('t'::regclass, 97, r, a, b, c))
             from (select nullif(g % 5, 4) a, nullif('b' || g % 7, 'b6') b, case when g % 3 > 0 then md5((g % 11)::text)::uuid end c
                   from generate_series(1, 500) g) x",
            &[],
        )
        .await
        .expect("rows");
    for row in &rows {
        let a = row.get::<_, Option<i32>>(0).map(|a| Value::Int(i64::from(a)));
        let b = row.get::<_, Option<String>>(1).map(|b| Value::Bytes(b.as_bytes().into()));
        let c = row.get::<_, Option<String>>(2).map(|c| Value::parse(Kind::Uuid, &c).expect("uuid"));
        let key = [(Kind::Int4, a.as_ref()), (Kind::Text, b.as_ref()), (Kind::Uuid, c.as_ref())];
        assert_eq!(hash::remainder(&key, MODULUS), Some(row.get::<_, i32>(3) as usize), "{row:?}");
    }
}
