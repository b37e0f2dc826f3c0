//! What the result cache costs: a hit, a miss with its store, and a write's raise and settle, without Redis and with one.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use pgherd::cache::{
    BackendChecker, BackendId, Entry, Key, Lookup, OpenTransaction, Protocol, ResultCache, WriteSetView,
};
use pgherd::config::model::{Cache, Consistency, OnRedisLoss, Redis, Secret};
use pgherd::error::Error;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const RELATIONS: [u32; 3] = [16_400, 16_401, 16_402];
const BACKEND: BackendId = BackendId { pid: 1, start_us: 1 };

struct NoneGone;

#[async_trait::async_trait]
impl BackendChecker for NoneGone {
    async fn backend_gone(&self, _: BackendId) -> Result<bool, Error> {
        Ok(false)
    }

    async fn open_transactions(&self) -> Result<Vec<OpenTransaction>, Error> {
        Ok(Vec::new())
    }
}

struct RedisServer(Child, u16);

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn redis_server() -> Option<RedisServer> {
    let port = TcpListener::bind("127.0.0.1:0").ok()?.local_addr().ok()?.port();
    let arguments = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    let child = Command::new("redis-server").args(arguments).stdout(Stdio::null()).spawn().ok()?;
    Some(RedisServer(child, port))
}

fn config(redis: Option<u16>) -> Cache {
    Cache {
        enabled: true,
        ttl: Duration::from_secs(300),
        memory_bytes: 256 << 20,
        max_entry_bytes: 1 << 20,
        consistency: Consistency::Strict,
        redis: redis.map(|port| Redis {
            url: Secret::new(format!("redis://127.0.0.1:{port}")),
            ttl: Duration::from_secs(3600),
            timeout: Duration::from_millis(100),
            prefix: "bench:".into(),
            lease: Duration::from_millis(300),
            on_loss: OnRedisLoss::Wait,
            replicas: 0,
            max_entry_bytes: 4 << 20,
            compress_above_bytes: 64 << 10,
            ca: None,
        }),
        tables: BTreeMap::new(),
        statements: BTreeMap::new(),
        olap_only: false,
        wal: None,
        min_cost: Duration::ZERO,
        in_transactions: true,
        audit_one_in: 0,
        stale_on_error: false,
        share_roles: false,
        shards: false,
    }
}

fn key(cache: &ResultCache, statement: &str) -> Key {
    cache
        .key(Protocol::Extended)
        .identity("app", "alice", "alice")
        .statement(statement.as_bytes())
        .parameter_types(&[23], &[1])
        .parameters([Some(&[0_u8, 0, 0, 7][..])])
        .result_formats(&[1])
        .settings([("search_path", "public"), ("TimeZone", "UTC"), ("DateStyle", "ISO, MDY")])
        .build()
}

fn write_set(relations: &[u32]) -> WriteSetView<'_> {
    WriteSetView { database: false, catalog: false, relations, catalog_version: 1 }
}

async fn ready(cache: &Arc<ResultCache>, key: &Key, bytes: usize) {
    loop {
        let as_of = *cache.catalog_epoch().borrow();
        cache.catalog_loaded(1, as_of);
        match cache.lookup(key, &RELATIONS, 1).await {
            Lookup::Hit { .. } => return,
            Lookup::Fill(ticket) => {
                let answer = Bytes::from(vec![b'x'; bytes]);
                ticket.store(Entry::new(answer, 0, 1, Duration::ZERO, Duration::from_secs(300))).await;
            }
            Lookup::Bypass(_) | Lookup::Failed(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

fn measure(criterion: &mut Criterion, runtime: &Runtime, tier: &str, redis: Option<u16>) {
    let cache = ResultCache::new("app", &config(redis), Arc::new(AtomicBool::new(true))).expect("configuration");
    cache.set_scope("bench");
    let stop = CancellationToken::new();
    let background = runtime.spawn(cache.clone().run(Arc::new(NoneGone), stop.clone()));
    let kept = key(&cache, "SELECT count(*) FROM orders WHERE customer_id = $1");
    runtime.block_on(ready(&cache, &kept, 1024));

    let mut group = criterion.benchmark_group(tier);
    group.bench_function("key", |bench| {
        bench.iter(|| key(&cache, black_box("SELECT count(*) FROM orders WHERE customer_id = $1")));
    });
    group.bench_function("hit", |bench| {
        bench.iter(|| runtime.block_on(async { black_box(cache.lookup(&kept, &RELATIONS, 1).await) }));
    });
    group.bench_function("raise and settle of 3 relations", |bench| {
        bench.iter(|| {
            runtime.block_on(async {
                let mut doubt = cache.epochs().open(BACKEND);
                doubt.raise(&write_set(black_box(&[1, 2, 3]))).await.expect("raise");
                doubt.settle();
            });
        });
    });
    let other = key(&cache, "SELECT 2");
    group.bench_function("miss and store of 1 KiB", |bench| {
        bench.iter(|| {
            runtime.block_on(async {
                let _ = cache.purge(pgherd::cache::Purge::Relations(&RELATIONS[..1]));
                if let Lookup::Fill(ticket) = cache.lookup(&other, &RELATIONS, 1).await {
                    let answer = Bytes::from_static(&[b'x'; 1024]);
                    ticket.store(Entry::new(answer, 0, 1, Duration::ZERO, Duration::from_secs(300))).await;
                }
            });
        });
    });
    group.finish();
    stop.cancel();
    runtime.block_on(background).expect("the background task ends");
}

fn cache(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    measure(criterion, &runtime, "memory", None);
    match redis_server() {
        Some(redis) => measure(criterion, &runtime, "redis", Some(redis.1)),
        None => eprintln!("redis-server is not installed: the tier with Redis is not measured"),
    }
}

criterion_group!(benches, cache);
criterion_main!(benches);
