//! A model of one database with writers and readers whose steps interleave at random, in the order of a schedule or on real
//! threads: no reader may see less than what was acknowledged before it began, or than any reader saw before it began. Each
//! fault, put in on purpose, must be found.

use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Relations 1 to 3; a statement reads one or two of them.
const READS: [&[u32]; 4] = [&[1], &[2], &[1, 2], &[2, 3]];
const WRITES: [&[u32]; 4] = [&[1], &[2], &[3], &[1, 3]];
const ACTORS: usize = 3;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// The writer's next: raise, commit, acknowledge, settle.
    Writer { actor: usize, writes: usize, rolls_back: bool },
    /// The reader's next: look up (a hit ends it), read from the database, store.
    Reader { actor: usize, reads: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..ACTORS, 0..WRITES.len(), prop::bool::weighted(0.1)).prop_map(|(actor, writes, rolls_back)| Step::Writer {
            actor,
            writes,
            rolls_back
        }),
        (0..ACTORS, 0..READS.len()).prop_map(|(actor, reads)| Step::Reader { actor, reads }),
    ]
}

/// How many commits each relation has had: made, acknowledged, seen by a reader.
#[derive(Default)]
struct Database {
    committed: [u64; 4],
    acknowledged: [u64; 4],
    seen: [u64; 4],
}

enum Writer {
    Idle,
    Raised { doubt: Doubt, set: &'static [u32], rolls_back: bool },
    Committed { doubt: Doubt, owed: Vec<(usize, u64)> },
    Acknowledged(Doubt),
}

enum Reader {
    Idle,
    Missed { ticket: FillTicket, set: &'static [u32] },
    Read { ticket: FillTicket, text: String },
}

struct World {
    cache: Arc<ResultCache>,
    database: Database,
    writers: Vec<Writer>,
    readers: Vec<Reader>,
    hits: u64,
}

fn text_of(values: &[u64; 4], set: &[u32]) -> String {
    set.iter().map(|oid| values[*oid as usize].to_string()).collect::<Vec<_>>().join(",")
}

impl World {
    fn new(faults: Faults) -> Self {
        Self {
            cache: cache_with(faults),
            database: Database::default(),
            writers: (0..ACTORS).map(|_| Writer::Idle).collect(),
            readers: (0..ACTORS).map(|_| Reader::Idle).collect(),
            hits: 0,
        }
    }

    fn write(&mut self, actor: usize, set: &'static [u32], rolls_back: bool) {
        let state = std::mem::replace(&mut self.writers[actor], Writer::Idle);
        self.writers[actor] = match state {
            Writer::Idle => {
                let mut doubt = self.cache.epochs().open(BACKEND);
                doubt.raise(&writes(set)).now_or_never().expect("no Redis, no wait").expect("raise");
                Writer::Raised { doubt, set, rolls_back }
            }
            Writer::Raised { doubt, set, rolls_back } => {
                let mut owed = Vec::new();
                for oid in set.iter().filter(|_| !rolls_back).map(|oid| *oid as usize) {
                    self.database.committed[oid] += 1;
                    owed.push((oid, self.database.committed[oid]));
                }
                Writer::Committed { doubt, owed }
            }
            Writer::Committed { doubt, owed } => {
                for (oid, value) in owed {
                    let acknowledged = &mut self.database.acknowledged[oid];
                    *acknowledged = value.max(*acknowledged);
                }
                Writer::Acknowledged(doubt)
            }
            Writer::Acknowledged(doubt) => {
                doubt.settle();
                Writer::Idle
            }
        };
    }

    fn read(&mut self, actor: usize, set: &'static [u32]) -> Result<(), TestCaseError> {
        let state = std::mem::replace(&mut self.readers[actor], Reader::Idle);
        self.readers[actor] = match state {
            Reader::Idle => {
                let key = key(&self.cache, &format!("{set:?}"));
                // A lookup that waits for another actor's fill goes without the cache in this schedule.
                match self.cache.lookup(&key, set, CATALOG).now_or_never() {
                    Some(Lookup::Hit { entry, .. }) => {
                        self.hits += 1;
                        self.check(set, &String::from_utf8_lossy(&entry.bytes))?;
                        Reader::Idle
                    }
                    Some(Lookup::Fill(ticket)) => Reader::Missed { ticket, set },
                    Some(Lookup::Bypass(_) | Lookup::Failed(_)) | None => {
                        self.see(set, self.database.committed);
                        Reader::Idle
                    }
                }
            }
            Reader::Missed { ticket, set } => {
                self.see(set, self.database.committed);
                Reader::Read { ticket, text: text_of(&self.database.committed, set) }
            }
            Reader::Read { ticket, text } => {
                ticket.store(answer(&text)).now_or_never().expect("no Redis, no wait");
                Reader::Idle
            }
        };
        Ok(())
    }

    fn see(&mut self, set: &[u32], values: [u64; 4]) {
        for oid in set {
            let seen = &mut self.database.seen[*oid as usize];
            *seen = (*seen).max(values[*oid as usize]);
        }
    }

    fn check(&mut self, set: &[u32], text: &str) -> Result<(), TestCaseError> {
        for (oid, value) in set.iter().zip(text.split(',')) {
            let value: u64 = value.parse().map_err(|_| TestCaseError::fail("not a number"))?;
            let oid = *oid as usize;
            prop_assert!(value >= self.database.acknowledged[oid], "stale: older than an acknowledged commit");
            prop_assert!(value >= self.database.seen[oid], "back in time: older than what was seen before");
        }
        Ok(())
    }
}

fn run(schedule: &[Step], faults: Faults) -> Result<u64, TestCaseError> {
    let mut world = World::new(faults);
    for step in schedule {
        match *step {
            Step::Writer { actor, writes, rolls_back } => world.write(actor, WRITES[writes], rolls_back),
            Step::Reader { actor, reads } => world.read(actor, READS[reads])?,
        }
    }
    Ok(world.hits)
}

/// Only for the timer that a lookup arms when it has to wait.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

fn explore(cases: u32, faults: Faults) -> (u64, Result<(), String>) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let hits = AtomicU64::new(0);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(step(), 20..120), |schedule| {
        hits.fetch_add(run(&schedule, faults)?, Ordering::Relaxed);
        Ok(())
    });
    (hits.into_inner(), outcome.map_err(|error| error.to_string()))
}

#[test]
fn no_schedule_shows_a_stale_answer() {
    let (hits, outcome) = explore(2_000, Faults::default());
    outcome.expect("never stale");
    assert!(hits > 2_000, "only {hits} hits: the model must look at what it is for");
}

#[test]
fn each_fault_is_found() {
    for faults in [
        Faults { no_second_raise: true, ..Faults::default() },
        Faults { doubt_as_flag: true, ..Faults::default() },
        Faults { store_without_comparing: true, ..Faults::default() },
    ] {
        let (_, outcome) = explore(4_000, faults);
        let found = outcome.expect_err("a stale answer");
        assert!(found.contains("stale") || found.contains("back in time"), "{faults:?}: {found}");
    }
}

#[test]
fn no_thread_sees_a_stale_answer() {
    let cache = cache();
    let committed: Arc<[AtomicU64; 4]> = Arc::default();
    let acknowledged: Arc<[AtomicU64; 4]> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for actor in 0..2_usize {
        let (cache, committed, acknowledged) = (cache.clone(), committed.clone(), acknowledged.clone());
        threads.push(std::thread::spawn(move || {
            for round in 0..3_000 {
                let oid = (actor + round) % 3 + 1;
                let mut doubt = cache.epochs().open(BACKEND);
                let set = [u32::try_from(oid).expect("small")];
                doubt.raise(&writes(&set)).now_or_never().expect("no wait").expect("raise");
                let value = committed[oid].fetch_add(1, Ordering::SeqCst) + 1;
                acknowledged[oid].fetch_max(value, Ordering::SeqCst);
                doubt.settle();
                std::thread::yield_now();
            }
            0
        }));
    }
    for actor in 0..2_usize {
        let (cache, committed) = (cache.clone(), committed.clone());
        let (acknowledged, stop) = (acknowledged.clone(), stop.clone());
        threads.push(std::thread::spawn(move || {
            let runtime = runtime();
            let _entered = runtime.enter();
            let mut hits = 0;
            for round in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let set = READS[(actor + round) % READS.len()];
                let owed: Vec<u64> = set.iter().map(|oid| acknowledged[*oid as usize].load(Ordering::SeqCst)).collect();
                let key = key(&cache, &format!("{set:?}"));
                match cache.lookup(&key, set, CATALOG).now_or_never() {
                    Some(Lookup::Hit { entry, .. }) => {
                        hits += 1;
                        let text = String::from_utf8_lossy(&entry.bytes).into_owned();
                        for (value, owed) in text.split(',').zip(owed) {
                            assert!(value.parse::<u64>().expect("a number") >= owed, "stale");
                        }
                    }
                    Some(Lookup::Fill(ticket)) => {
                        let values = [0, 1, 2, 3].map(|oid: usize| committed[oid].load(Ordering::SeqCst));
                        ticket.store(answer(&text_of(&values, set))).now_or_never().expect("no wait");
                    }
                    Some(Lookup::Bypass(_) | Lookup::Failed(_)) | None => std::thread::yield_now(),
                }
            }
            hits
        }));
    }
    let readers = threads.split_off(2);
    for writer in threads {
        writer.join().expect("a writer");
    }
    stop.store(true, Ordering::Relaxed);
    let hits: u64 = readers.into_iter().map(|reader| reader.join().expect("a reader")).sum();
    assert!(hits > 0, "no hit at all");
}
