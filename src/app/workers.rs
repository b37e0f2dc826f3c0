//! The threads that serve clients: as many as the load needs, up to `threads`.
//!
//! Every thread has a reactor and sockets of its own, so that nothing wakes another thread while one transaction runs. One busy
//! thread costs less than two half idle ones: clients are put on another only while the ones in use have no processor time left
//! and the machine has some, and come back when it is quiet. On a machine without any left, another thread takes from the servers
//! and clients beside it what it then spends on sleeping and waking more often.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::House;
use crate::net::home::{self, Surplus};

/// How often the threads' loads are compared.
const ROUND: Duration = Duration::from_millis(250);
/// Share of a processor from which a thread counts as full.
const FULL: f64 = 0.85;
/// Difference in load that is worth moving clients for.
const IMBALANCE: f64 = 0.30;
/// Load at which the threads in use could do with one less.
const QUIET: f64 = 0.50;
/// Rounds that it must be quiet before one less does it.
const QUIET_ROUNDS: u32 = 20;
/// Processors' worth of idle time from which the machine counts as having some left: less comes back as sleeping and waking.
const SPARE: f64 = 0.5;
/// Of so many processors, one is taken even from a machine that has nothing left.
const FAIR_SHARE: usize = 4;

/// One thread.
struct Worker {
    handle: Handle,
    sessions: AtomicUsize,
    surplus: Arc<Surplus>,
    /// Where the kernel says how long it has run; `None` where no kernel does.
    schedstat: Option<PathBuf>,
}

/// See the module's description.
pub(super) struct Workers {
    running: Mutex<Vec<Arc<Worker>>>,
    /// The first so many of them get clients.
    in_use: AtomicUsize,
    max: usize,
    stop: CancellationToken,
}

/// A session's place on a thread.
pub(super) struct Seat {
    worker: Arc<Worker>,
}

impl Seat {
    /// Where tasks of that thread are spawned.
    pub(super) fn handle(&self) -> &Handle {
        &self.worker.handle
    }

    /// How many sessions the thread wants to be rid of.
    pub(super) fn surplus(&self) -> Arc<Surplus> {
        Arc::clone(&self.worker.surplus)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.worker.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// The thread at hand, and up to `threads` in all when they are needed.
    pub(super) fn new(threads: Option<usize>, stop: &CancellationToken) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let first = Worker::new(Handle::current());
        let max = threads.unwrap_or(cores).max(1);
        // Where the kernel does not say how busy a thread is, all are used at once.
        let in_use = if first.schedstat.is_some() { 1 } else { max };
        let workers =
            Self { running: Mutex::new(vec![Arc::new(first)]), in_use: AtomicUsize::new(1), max, stop: stop.clone() };
        for _ in 1..in_use {
            workers.use_one_more();
        }
        workers
    }

    /// A seat on the thread in use that has the fewest sessions.
    pub(super) fn seat(&self) -> Seat {
        let running = self.running.lock();
        let in_use = self.in_use.load(Ordering::Relaxed);
        let sessions = |worker: &&Arc<Worker>| worker.sessions.load(Ordering::Relaxed);
        let worker = running.iter().take(in_use).min_by_key(sessions).expect("the first is always there");
        worker.sessions.fetch_add(1, Ordering::Relaxed);
        Seat { worker: Arc::clone(worker) }
    }

    /// Puts another thread to use. Returns false if there is no other.
    fn use_one_more(&self) -> bool {
        let mut running = self.running.lock();
        let in_use = self.in_use.load(Ordering::Relaxed);
        if in_use >= self.max {
            return false;
        }
        if running.len() == in_use {
            match Worker::start(in_use, self.stop.clone()) {
                Ok(worker) => running.push(Arc::new(worker)),
                Err(error) => {
                    tracing::warn!(%error, "could not start another thread");
                    return false;
                }
            }
        }
        self.in_use.store(in_use + 1, Ordering::Relaxed);
        true
    }

    fn use_one_less(&self) {
        let in_use = self.in_use.load(Ordering::Relaxed);
        self.in_use.store(in_use.saturating_sub(1).max(1), Ordering::Relaxed);
    }

    /// Puts exactly so many threads to use, as far as there may be, and spreads the sessions over them.
    pub(super) fn use_exactly(&self, count: usize) {
        self.in_use.store(self.in_use().min(count.max(1)), Ordering::Relaxed);
        while self.in_use() < count && self.use_one_more() {}
        let running = self.running.lock();
        let sessions = |worker: &Arc<Worker>| worker.sessions.load(Ordering::Relaxed);
        let share = running.iter().map(sessions).sum::<usize>() / self.in_use();
        for (number, worker) in running.iter().enumerate() {
            let stay = if number < self.in_use() { share } else { 0 };
            worker.surplus.set(sessions(worker).saturating_sub(stay));
        }
    }

    /// Threads in use.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }
}

impl Worker {
    /// A worker on the thread at hand.
    fn new(handle: Handle) -> Self {
        let me = std::fs::read_link("/proc/thread-self").ok();
        let schedstat = me.map(|me| PathBuf::from("/proc").join(me).join("schedstat")).filter(|file| file.exists());
        Self { handle, sessions: AtomicUsize::new(0), surplus: Arc::default(), schedstat }
    }

    /// A worker on a thread of its own, which ends with `stop`.
    fn start(number: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (started, worker) = std::sync::mpsc::channel();
        std::thread::Builder::new().name(format!("pgherd-{number}")).spawn(move || {
            home::settle(number);
            let _ = started.send(Self::new(runtime.handle().clone()));
            runtime.block_on(stop.cancelled());
        })?;
        worker.recv().map_err(io::Error::other)
    }

    /// How long it has run, in processor time.
    fn cpu_time(&self) -> Duration {
        let text = self.schedstat.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
        let nanoseconds = text.as_deref().and_then(|text| text.split(' ').next()?.parse().ok());
        Duration::from_nanos(nanoseconds.unwrap_or(0))
    }
}

/// How many threads there may be, and what the machine has for them.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Threads, at most.
    max: usize,
    /// Threads that are used when they are needed, whether or not anything is idle.
    fair: usize,
    /// Processors' worth of time that was idle in the last round.
    spare: f64,
}

impl Room {
    /// Another thread beside so many would run in time that nobody else uses, or that pgherd may well take.
    fn is_there_for_more_than(&self, count: usize) -> bool {
        count < self.max && (self.spare >= SPARE || count < self.fair)
    }
}

/// What is to be done about the loads of the threads in use.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    /// One more thread.
    Grow,
    /// One less.
    Shrink,
    /// So large a share of the first's sessions goes elsewhere.
    Move(usize, f64),
}

/// Decides what to do about those loads, each the share of a processor that a thread in use has taken.
fn step(loads: &[f64], room: Room, quiet_rounds: u32) -> Step {
    let total: f64 = loads.iter().sum();
    let by_load = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
    let Some((busiest, most)) = loads.iter().enumerate().max_by(by_load) else { return Step::Nothing };
    let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
    let is_full = *most >= FULL;
    if is_full && total >= FULL * loads.len() as f64 - IMBALANCE && room.is_there_for_more_than(loads.len()) {
        return Step::Grow;
    }
    if is_full && most - least >= IMBALANCE {
        return Step::Move(busiest, (most - least) / 2.0 / most);
    }
    if is_quiet(loads, room) && quiet_rounds >= QUIET_ROUNDS {
        return Step::Shrink;
    }
    Step::Nothing
}

/// One thread less could do it: by far, or just so where the machine has no time left for the last one.
fn is_quiet(loads: &[f64], room: Room) -> bool {
    let fewer = loads.len().saturating_sub(1);
    let is_crowded = room.spare < SPARE && fewer >= room.fair;
    let enough = if is_crowded { 1.0 } else { QUIET };
    fewer > 0 && loads.iter().sum::<f64>() < enough * fewer as f64
}

/// How long the machine's processors have run and been idle, in ticks of the kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ticks {
    idle: u64,
    all: u64,
    processors: u32,
}

impl Ticks {
    /// What the kernel says now; `None` where no kernel does.
    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// Source: proc_stat(5). The first eight numbers are user, nice, system, idle, iowait, irq, softirq and steal.
    fn parse(text: &str) -> Option<Self> {
        let all = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = all.split_whitespace().take(8).map_while(|number| number.parse().ok()).collect();
        let processors = text.lines().skip(1).take_while(|line| line.starts_with("cpu")).count();
        Some(Self { idle: ticks.get(3)? + ticks.get(4)?, all: ticks.iter().sum(), processors: processors as u32 })
    }

    /// Processors' worth of idle time since then.
    fn idle_since(&self, then: &Self) -> f64 {
        let all = self.all.saturating_sub(then.all).max(1);
        self.idle.saturating_sub(then.idle) as f64 / all as f64 * f64::from(self.processors)
    }
}

/// Compares the threads' loads, and moves clients where that helps, until pgherd ends.
pub(super) async fn balance(house: Arc<House>) {
    let workers = &house.workers;
    let mut round = tokio::time::interval(ROUND);
    let (mut before, mut at, mut quiet_rounds) = (Vec::new(), Instant::now(), 0);
    let mut ticks = Ticks::now();
    let fair = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get) / FAIR_SHARE;
    loop {
        tokio::select! {
            () = house.stop.cancelled() => return,
            _ = round.tick() => {}
        }
        let running = workers.running.lock().clone();
        let now: Vec<Duration> = running.iter().map(|worker| worker.cpu_time()).collect();
        let wall = at.elapsed().as_secs_f64().max(0.001);
        at = Instant::now();
        let load = |(number, now): (usize, &Duration)| {
            let before = before.get(number).copied().unwrap_or(*now);
            now.saturating_sub(before).as_secs_f64() / wall
        };
        let loads: Vec<f64> = now.iter().enumerate().take(workers.in_use()).map(load).collect();
        before = now;
        house.metrics.threads.set(loads.len() as i64);
        let then = std::mem::replace(&mut ticks, Ticks::now());
        // Where the kernel does not say, threads are used as if there were no end of processors.
        let spare = ticks.zip(then).map_or(f64::INFINITY, |(now, then)| now.idle_since(&then));
        let room = Room { max: workers.max, fair, spare };
        quiet_rounds = if is_quiet(&loads, room) { quiet_rounds + 1 } else { 0 };
        carry_out(workers, &running, &step(&loads, room, quiet_rounds), &loads);
    }
}

fn carry_out(workers: &Workers, running: &[Arc<Worker>], step: &Step, loads: &[f64]) {
    let give = |number: usize, share: f64| {
        if let Some(worker) = running.get(number) {
            let sessions = worker.sessions.load(Ordering::Relaxed) as f64;
            worker.surplus.set((sessions * share).floor() as usize);
        }
    };
    match *step {
        Step::Nothing => running.iter().take(loads.len()).for_each(|worker| worker.surplus.set(0)),
        Step::Grow if workers.use_one_more() => {
            let share = 1.0 / (loads.len() + 1) as f64;
            (0..loads.len()).for_each(|number| give(number, share));
            tracing::debug!(threads = workers.in_use(), "one more thread");
        }
        Step::Grow => {}
        Step::Shrink => {
            workers.use_one_less();
            // It keeps being asked, so that clients that were idle all the while leave when they come back.
            give(loads.len() - 1, 1.0);
            tracing::debug!(threads = workers.in_use(), "one thread less");
        }
        Step::Move(from, share) => give(from, share),
    }
    // Whoever is still on a thread that is not in use goes when it next does something.
    for worker in running.iter().skip(workers.in_use()) {
        worker.surplus.set(worker.sessions.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with idle processors.
    fn up_to(max: usize) -> Room {
        Room { max, fair: 1, spare: 1.0 }
    }

    /// A machine without.
    fn crowded(max: usize, fair: usize) -> Room {
        Room { max, fair, spare: 0.02 }
    }

    #[test]
    fn a_second_thread_is_used_when_the_first_is_full_and_not_before() {
        assert_eq!(step(&[0.5], up_to(4), 100), Step::Nothing);
        assert_eq!(step(&[0.9], up_to(4), 0), Step::Grow);
        assert_eq!(step(&[0.9], up_to(1), 0), Step::Nothing);
    }

    #[test]
    fn clients_move_from_a_full_thread_to_an_idle_one_before_another_is_used() {
        assert!(matches!(step(&[0.9, 0.1], up_to(4), 0), Step::Move(0, share) if (0.4..0.5).contains(&share)));
        assert!(matches!(step(&[0.2, 1.0], up_to(2), 0), Step::Move(1, _)));
        assert_eq!(step(&[0.9, 0.8], up_to(4), 0), Step::Grow);
        assert_eq!(step(&[0.9, 0.8], up_to(2), 0), Step::Nothing);
    }

    #[test]
    fn a_thread_is_given_up_when_it_has_been_quiet_for_a_while() {
        assert_eq!(step(&[0.2, 0.1], up_to(4), 0), Step::Nothing);
        assert_eq!(step(&[0.2, 0.1], up_to(4), QUIET_ROUNDS), Step::Shrink);
        assert_eq!(step(&[0.1], up_to(4), QUIET_ROUNDS), Step::Nothing);
    }

    #[test]
    fn a_machine_without_time_to_spare_gets_no_thread_beyond_a_fair_share() {
        assert_eq!(step(&[0.98], crowded(2, 0), 0), Step::Nothing);
        assert_eq!(step(&[0.98], crowded(16, 4), 0), Step::Grow);
        assert_eq!(step(&[0.98; 4], crowded(16, 4), 0), Step::Nothing);
        assert_eq!(step(&[0.98, 0.2], crowded(2, 0), 0), step(&[0.98, 0.2], up_to(2), 0), "what there is, is shared");
    }

    #[test]
    fn a_machine_without_time_to_spare_gets_a_thread_back_that_the_others_can_do_without() {
        assert_eq!(step(&[0.5, 0.4], crowded(2, 0), QUIET_ROUNDS), Step::Shrink);
        assert_eq!(step(&[0.5, 0.4], crowded(2, 0), 0), Step::Nothing);
        assert_eq!(step(&[0.5, 0.4], crowded(16, 4), QUIET_ROUNDS), Step::Nothing);
        assert_eq!(step(&[0.5, 0.4], up_to(2), QUIET_ROUNDS), Step::Nothing);
        assert_eq!(step(&[0.7, 0.6], crowded(2, 0), QUIET_ROUNDS), Step::Nothing);
    }

    #[test]
    fn the_kernel_says_how_much_is_idle() {
        let then = Ticks::parse("cpu  100 0 50 800 50 0 0 0 7 0\ncpu0 1\ncpu1 1\nintr 5\n").expect("three lines");
        assert_eq!(then, Ticks { idle: 850, all: 1000, processors: 2 });
        let now = Ticks::parse("cpu  180 0 60 810 50 0 0 0 7 0\ncpu0 1\ncpu1 1\n").expect("three lines");
        assert!((now.idle_since(&then) - 0.2).abs() < 1e-9);
        assert_eq!(then.idle_since(&then), 0.0);
        assert_eq!(Ticks::parse("intr 5\n"), None);
        assert_eq!(Ticks::parse("cpu  100 0\n"), None);
    }

    #[tokio::test]
    async fn a_thread_of_its_own_runs_what_is_spawned_on_it_and_ends() {
        let stop = CancellationToken::new();
        let workers = Workers::new(Some(2), &stop);
        let number_of = async |seat: &Seat| seat.handle().spawn(async { home::here() }).await.expect("a number");
        assert_eq!(number_of(&workers.seat()).await, 0);
        assert!(workers.use_one_more() && !workers.use_one_more());
        let seats = [workers.seat(), workers.seat()];
        assert_eq!([number_of(&seats[0]).await, number_of(&seats[1]).await], [0, 1], "each thread has one");
        stop.cancel();
    }
}
