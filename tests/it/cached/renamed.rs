//! PostgreSQL was restarted: what the cache stands on has another name, and pgherds learn of it one after the other.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pgherd::cache::{
    BackendChecker, BackendId, Doubt, Entry, Key, Lookup, OpenTransaction, Protocol, ResultCache, Stored, WriteSetView,
};
use pgherd::commands::demo::servers::RedisServer;
use pgherd::config;
use pgherd::error::Error;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::fleet::redis;
use crate::harness::{eventually, ground};

const ORDERS: u32 = 16_400;
const CATALOG: u64 = 1;
const LEASE: Duration = Duration::from_secs(1);
const OLD: &str = "7301-1-170000";
const NEW: &str = "7301-1-170001";
const BACKEND: BackendId = BackendId { pid: 4711, start_us: 1_700_000_000_000_000 };

/// One pgherd's cache, and its background.
struct Member {
    cache: Arc<ResultCache>,
    stop: CancellationToken,
    looking: Option<JoinHandle<()>>,
}

struct NobodyIsGone;

#[async_trait::async_trait]
impl BackendChecker for NobodyIsGone {
    async fn backend_gone(&self, _: BackendId) -> Result<bool, Error> {
        Ok(false)
    }

    async fn open_transactions(&self) -> Result<Vec<OpenTransaction>, Error> {
        Ok(Vec::new())
    }
}

impl Member {
    async fn join(redis: &RedisServer) -> Self {
        let text = format!(
            "[[database]]\nname = \"app\"\nprimary = \"host=127.0.0.1\"\n[[user]]\nname = \"a\"\nauth = \"trust\"\n[listen]\naddress = \"127.0.0.1:0\"\n\
             [cache]\nenabled = true\nredis = {{ url = \"{}\", timeout = \"500ms\", lease = \"{}ms\" }}\n",
            redis.url(),
            LEASE.as_millis()
        );
        let config = config::parse(&text, Path::new("proxy.toml"), ground().folder(), &|_| None);
        let config = config.unwrap_or_else(|faults| panic!("{faults}")).config;
        let cache = ResultCache::new("app", &config.cache, Arc::new(AtomicBool::new(false))).expect("a cache");
        cache.begin_watch();
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&cache).run(Arc::new(NobodyIsGone), stop.clone()));
        cache.epochs().publish_backend(BACKEND);
        let mut member = Self { cache, stop, looking: None };
        member.looks_at(OLD);
        member.cache.set_scope(OLD);
        eventually(Duration::from_secs(10), "it registers", || async { member.cache.is_registered() }).await;
        member
    }

    /// From here on PostgreSQL is looked at, again and again, and is the server of that name.
    fn looks_at(&mut self, scope: &'static str) {
        self.looks_no_more();
        let cache = Arc::clone(&self.cache);
        self.looking = Some(tokio::spawn(async move {
            loop {
                cache.was_looked_at(scope, Instant::now(), true);
                tokio::time::sleep(LEASE / 8).await;
            }
        }));
    }

    fn looks_no_more(&mut self) {
        self.looking.take().iter().for_each(JoinHandle::abort);
    }

    fn key(&self) -> Key {
        self.cache.key(Protocol::Simple).identity("app", "a", "a").statement(b"select count(*) from orders").build()
    }

    async fn ask(&self) -> Lookup {
        let as_of = *self.cache.catalog_epoch().borrow();
        self.cache.catalog_loaded(CATALOG, as_of);
        self.cache.lookup(&self.key(), &[ORDERS], CATALOG).await
    }

    async fn serves(&self) -> bool {
        match self.ask().await {
            Lookup::Fill(ticket) => {
                let (bytes, hour) = (Bytes::from_static(b"10"), Duration::from_secs(3600));
                assert!(matches!(ticket.store(Entry::new(bytes, 0, 1, hour, hour)).await, Stored::Yes | Stored::No(_)));
                false
            }
            found => matches!(found, Lookup::Hit { .. }),
        }
    }

    async fn raise(&self, doubt: &mut Doubt) -> Result<(), Error> {
        let writes = WriteSetView { database: false, catalog: false, relations: &[ORDERS], catalog_version: CATALOG };
        doubt.raise(&writes).await
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.looks_no_more();
        self.stop.cancel();
    }
}

/// Two pgherds that serve one answer.
async fn scene() -> Option<(RedisServer, Member, Member)> {
    let redis = redis()?;
    let (one, other) = (Member::join(&redis).await, Member::join(&redis).await);
    for member in [&one, &other] {
        eventually(Duration::from_secs(10), "it serves", || member.serves()).await;
    }
    Some((redis, one, other))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_not_noticed_serves_nothing_once_somebody_writes_under_the_new_name() {
    let Some((_redis, mut one, mut other)) = scene().await else { return };
    // The first has noticed. The second looked just before, and cannot look any more.
    other.looks_no_more();
    one.looks_at(NEW);
    one.cache.set_scope(NEW);
    let mut doubt = one.cache.epochs().open(BACKEND);
    one.raise(&mut doubt).await.expect("a mark");
    let end = Instant::now() + LEASE * 3;
    assert!(!matches!(other.ask().await, Lookup::Hit { .. }), "an answer from before the restart");
    doubt.settle();
    while Instant::now() < end {
        assert!(!matches!(other.ask().await, Lookup::Hit { .. }), "an answer from before the restart");
        tokio::time::sleep(LEASE / 20).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_under_the_name_of_a_server_that_is_out_of_sight_is_none() {
    let Some((_redis, mut one, _other)) = scene().await else { return };
    // Looks reach a server of another name; what the cache stands on still has the old one.
    one.looks_at(NEW);
    eventually(LEASE, "nothing is served", || async { !matches!(one.ask().await, Lookup::Hit { .. }) }).await;
    let mut doubt = one.cache.epochs().open(BACKEND);
    let refused = one.raise(&mut doubt).await.expect_err("nobody looks under that name");
    assert!(refused.message().contains("was not sent"), "{refused}");
    one.cache.set_scope(NEW);
    one.raise(&mut doubt).await.expect("a mark that is seen");
    doubt.settle();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_waits_for_the_next_look() {
    let Some((_redis, mut one, _other)) = scene().await else { return };
    one.looks_no_more();
    one.cache.cannot_look();
    let mut doubt = one.cache.epochs().open(BACKEND);
    let began = Instant::now();
    let looked = async {
        tokio::time::sleep(LEASE / 4).await;
        one.cache.was_looked_at(OLD, Instant::now(), true);
    };
    let (raised, ()) = tokio::join!(one.raise(&mut doubt), looked);
    raised.expect("a mark");
    assert!(began.elapsed() >= LEASE / 4, "{:?}", began.elapsed());
    doubt.settle();
}
