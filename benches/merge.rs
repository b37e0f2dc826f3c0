//! What merging costs per row: concatenation, a four-way ordered merge, and groups.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgherd::exec::merge::description::{Column, Description};
use pgherd::exec::merge::{Merger, ResultFormats};
use pgherd::plan::Reason;
use pgherd::plan::distribute::{Aggregate, Collating, Groups, Key, Merge, Output, Sort, SortBy, Streamed};
use pgherd::wire::frame::Frame;
use pgherd::wire::writer;

const LEGS: usize = 4;
const ROWS_PER_LEG: usize = 10_000;

fn row(values: &[&[u8]]) -> Frame {
    let mut out = BytesMut::new();
    writer::data_row(&mut out, values.iter().map(|value| Some(*value)));
    Frame { bytes: out.freeze() }
}

fn description(types: &[u32]) -> Description {
    let column = |&type_oid| Column { name: "c".into(), table: 0, attribute: 0, type_oid, size: -1, typmod: -1 };
    Description { columns: types.iter().map(column).collect() }
}

fn streamed(hidden: usize, merge: Merge, sort: Vec<Sort>) -> Streamed {
    let reason = Reason { code: "bench", text: "".into() };
    Streamed {
        shards: (0..LEGS).collect(),
        sql: "".into(),
        hidden,
        inserted: (0, 0),
        merge,
        sort,
        named: Vec::new(),
        offset: 0,
        limit: None,
        reason,
    }
}

/// Feeds the legs' rows in turn, as they would come from sockets.
fn merge(plan: &Streamed, description: &Description, legs: &[Vec<Frame>]) -> usize {
    let formats = ResultFormats { codes: &[], extra_float_digits: 1 };
    let mut merger = Merger::new(plan, description, formats, LEGS, 1 << 30).expect("a merger");
    let (mut out, mut bytes) = (BytesMut::new(), 0);
    for at in 0..ROWS_PER_LEG {
        for (leg, rows) in legs.iter().enumerate() {
            merger.push(leg, rows[at].clone(), &mut out).expect("a row");
        }
        bytes += out.len();
        out.clear();
    }
    for leg in 0..LEGS {
        merger.end(leg, &mut out).expect("an end");
    }
    while merger.finish(&mut out, usize::MAX).expect("rows") {}
    bytes + out.len()
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Elements((LEGS * ROWS_PER_LEG) as u64));
    let key = Key { hidden: 0, collating: Collating::Bytes };
    let text = [b'x'; 40];
    let legs = |values: &dyn Fn(usize, usize) -> Frame| -> Vec<Vec<Frame>> {
        (0..LEGS).map(|leg| (0..ROWS_PER_LEG).map(|at| values(leg, at)).collect()).collect()
    };
    let rows = legs(&|leg, at| row(&[&(at * LEGS + leg).to_be_bytes(), &text]));
    let ordered = legs(&|leg, at| row(&[b"12345", &text, &(at * LEGS + leg).to_be_bytes()]));
    let grouped = legs(&|_, at| row(&[b"g", b"1", &((at % 500) as i64).to_be_bytes(), &1_i64.to_be_bytes()]));
    let sort = Sort { by: SortBy::Hidden(key), descending: false, nulls_first: false };
    let groups = Groups {
        keys: vec![key],
        aggregates: vec![Aggregate::Count { partial: 1 }],
        outputs: vec![(1, Output::Aggregate(0))],
        having: None,
        order: Vec::new(),
    };
    let in_order = Groups { order: vec![sort], ..groups.clone() };
    let sorted = legs(&|_, at| row(&[b"g", b"1", &((at / 20) as i64).to_be_bytes(), &1_i64.to_be_bytes()]));
    let cases = [
        ("concatenate", streamed(0, Merge::Rows, Vec::new()), description(&[20, 25]), rows),
        ("ordered", streamed(1, Merge::Rows, vec![sort]), description(&[20, 25, 20]), ordered),
        ("groups in order", streamed(2, Merge::Groups(in_order), Vec::new()), description(&[25, 20, 20, 20]), sorted),
        ("groups", streamed(2, Merge::Groups(groups), Vec::new()), description(&[25, 20, 20, 20]), grouped),
    ];
    for (name, plan, description, legs) in &cases {
        group.bench_function(*name, |bencher| {
            bencher.iter_batched(|| (), |()| black_box(merge(plan, description, legs)), BatchSize::PerIteration);
        });
    }
}

criterion_group!(all, benches);
criterion_main!(all);
