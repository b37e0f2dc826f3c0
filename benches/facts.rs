//! What reading a statement costs: its fingerprint, its facts from the memo, and its facts when nobody has sent it before.

#![allow(missing_docs, reason = "criterion_group makes a public function")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pgherd::sql::Analyzer;
use pgherd::sql::fingerprint::fingerprint;
use pgherd::sql::parse::parse;

const STATEMENTS: [(&str, &str); 4] = [
    ("pgbench_select", "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"),
    ("pgbench_update", "UPDATE pgbench_accounts SET abalance = abalance + -1234 WHERE aid = 4711;"),
    (
        "orm_join",
        "SELECT \"orders\".\"id\", \"orders\".\"total\", \"customers\".\"name\" FROM \"orders\" INNER JOIN \"customers\" ON \
         \"customers\".\"id\" = \"orders\".\"customer_id\" LEFT OUTER JOIN \"items\" ON \"items\".\"order_id\" = \"orders\".\"id\" \
         WHERE \"customers\".\"country\" IN ($1, $2, $3) AND \"orders\".\"placed_at\" >= $4 AND (\"items\".\"sku\" ILIKE $5 OR \
         \"items\".\"id\" IS NULL) ORDER BY \"orders\".\"placed_at\" DESC LIMIT $6",
    ),
    (
        "tpch_q2",
        "select s_acctbal, s_name, n_name, p_partkey, p_mfgr, s_address, s_phone, s_comment from part, supplier, partsupp, nation, \
         region where p_partkey = ps_partkey and s_suppkey = ps_suppkey and p_size = 15 and p_type like '%BRASS' and s_nationkey = \
         n_nationkey and n_regionkey = r_regionkey and r_name = 'EUROPE' and ps_supplycost = (select min(ps_supplycost) from \
         partsupp, supplier, nation, region where p_partkey = ps_partkey and s_suppkey = ps_suppkey and s_nationkey = n_nationkey \
         and n_regionkey = r_regionkey and r_name = 'EUROPE') order by s_acctbal desc, n_name, s_name, p_partkey limit 100",
    ),
];

fn facts(criterion: &mut Criterion) {
    for (name, text) in STATEMENTS {
        let text = text.as_bytes();
        criterion.bench_function(&format!("fingerprint/{name}"), |bench| {
            bench.iter(|| fingerprint(black_box(text), true));
        });
        let analyzer = Analyzer::new();
        analyzer.facts(text, true);
        criterion.bench_function(&format!("memo_hit/{name}"), |bench| {
            bench.iter(|| analyzer.facts(black_box(text), true));
        });
        criterion.bench_function(&format!("parse/{name}"), |bench| {
            bench.iter(|| parse(black_box(text), true).expect("it parses"));
        });
        // A memo of no bytes keeps nothing: each call reads the text anew.
        let forgetful = Analyzer::with_memo_bytes(0);
        criterion.bench_function(&format!("facts_unseen/{name}"), |bench| {
            bench.iter(|| forgetful.facts(black_box(text), true));
        });
    }
}

criterion_group!(benches, facts);
criterion_main!(benches);
