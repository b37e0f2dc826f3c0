//! The threads that serve clients: as many as the load needs, up to `threads`.
//!
//! Every thread has a reactor and sockets of its own, so that nothing wakes another thread while one transaction runs. One busy
//! thread costs less than two half idle ones: clients are put on another only while the ones in use have no processor time left,
//! and come back when it is quiet.

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
fn step(loads: &[f64], max: usize, quiet_rounds: u32) -> Step {
    let total: f64 = loads.iter().sum();
    let by_load = |a: &(usize, &f64), b: &(usize, &f64)| a.1.total_cmp(b.1);
    let Some((busiest, most)) = loads.iter().enumerate().max_by(by_load) else { return Step::Nothing };
    let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
    let is_full = *most >= FULL;
    if is_full && loads.len() < max && total >= FULL * loads.len() as f64 - IMBALANCE {
        return Step::Grow;
    }
    if is_full && most - least >= IMBALANCE {
        return Step::Move(busiest, (most - least) / 2.0 / most);
    }
    let fewer = loads.len().saturating_sub(1);
    if fewer > 0 && total < QUIET * fewer as f64 && quiet_rounds >= QUIET_ROUNDS {
        return Step::Shrink;
    }
    Step::Nothing
}

/// Compares the threads' loads, and moves clients where that helps, until pgherd ends.
pub(super) async fn balance(house: Arc<House>) {
    let workers = &house.workers;
    let mut round = tokio::time::interval(ROUND);
    let (mut before, mut at, mut quiet_rounds) = (Vec::new(), Instant::now(), 0);
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
        let is_quiet = loads.iter().sum::<f64>() < QUIET * loads.len().saturating_sub(1) as f64;
        quiet_rounds = if is_quiet { quiet_rounds + 1 } else { 0 };
        carry_out(workers, &running, &step(&loads, workers.max, quiet_rounds), &loads);
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

    #[test]
    fn a_second_thread_is_used_when_the_first_is_full_and_not_before() {
        assert_eq!(step(&[0.5], 4, 100), Step::Nothing);
        assert_eq!(step(&[0.9], 4, 0), Step::Grow);
        assert_eq!(step(&[0.9], 1, 0), Step::Nothing);
    }

    #[test]
    fn clients_move_from_a_full_thread_to_an_idle_one_before_another_is_used() {
        assert!(matches!(step(&[0.9, 0.1], 4, 0), Step::Move(0, share) if (0.4..0.5).contains(&share)));
        assert!(matches!(step(&[0.2, 1.0], 2, 0), Step::Move(1, _)));
        assert_eq!(step(&[0.9, 0.8], 4, 0), Step::Grow);
        assert_eq!(step(&[0.9, 0.8], 2, 0), Step::Nothing);
    }

    #[test]
    fn a_thread_is_given_up_when_it_has_been_quiet_for_a_while() {
        assert_eq!(step(&[0.2, 0.1], 4, 0), Step::Nothing);
        assert_eq!(step(&[0.2, 0.1], 4, QUIET_ROUNDS), Step::Shrink);
        assert_eq!(step(&[0.1], 4, QUIET_ROUNDS), Step::Nothing);
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
