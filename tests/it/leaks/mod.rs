//! Nobody else's state: many clients live at random through few server connections, each beside a twin with a PostgreSQL of its own
//! that is told the same; after every step both are asked what they see of themselves, and both must see the same. Some vanish at any
//! byte, some cancel, and server processes are killed.
//!
//! The quick tier runs some seconds; `PGHERD_SOAK_SECONDS=600` runs so long. `PGHERD_SOAK_SEED` repeats a run's dice, and
//! `PGHERD_SOAK_LIFE` tells one life of it alone.

mod dice;
mod driver;
#[cfg(feature = "faults")]
mod faults;
mod life;
mod line;
mod look;
mod scene;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use scene::Scene;
use tokio::task::JoinSet;

use crate::harness;
use crate::relay::proxy::Proxy;

/// Clients at once.
const CLIENTS: u64 = 64;
/// One in so many speaks through a driver.
const DRIVERS: u64 = 8;
/// A quick run.
const QUICK: Duration = Duration::from_secs(7);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How a run is run.
struct Run {
    servers: u32,
    kills: bool,
    more: &'static str,
    time: Duration,
    #[cfg(feature = "faults")]
    leak: Option<pgherd::session::context::Leak>,
}

impl Run {
    fn over(servers: u32) -> Self {
        let time = number("PGHERD_SOAK_SECONDS").map_or(QUICK, Duration::from_secs);
        Self {
            servers,
            kills: true,
            more: "",
            time,
            #[cfg(feature = "faults")]
            leak: None,
        }
    }
}

/// Lives lives until it is time, and returns what must never be.
async fn soak(run: Run) -> Vec<String> {
    let seed = number("PGHERD_SOAK_SEED").unwrap_or_else(rand::random);
    eprintln!("seed {seed}");
    let roles = [harness::unique("leaker"), harness::unique("leaker")];
    let databases = [harness::fresh_database().await, harness::fresh_database().await];
    Scene::furnish(&databases, &roles).await;
    let pool = format!("max_connections = {}, prepared_statements = 30, acquire_timeout = \"80s\"", run.servers);
    let proxy = Proxy::with(databases[0].clone(), &databases[0].address(), &pool, run.more).await;
    #[cfg(feature = "faults")]
    {
        proxy.wire().await;
        proxy.leaks(run.leak);
    }
    let scene = Arc::new(Scene::set(proxy.port, databases, roles, seed, run.time, run.kills).await);
    if let Some(life) = number("PGHERD_SOAK_LIFE") {
        life::live(&scene, life).await;
        return scene.violations();
    }
    let (mut tasks, next) = (JoinSet::new(), Arc::new(AtomicU64::new(1)));
    for client in 0..CLIENTS {
        let (scene, next) = (Arc::clone(&scene), Arc::clone(&next));
        tasks.spawn(async move {
            while !scene.is_over() {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if client % DRIVERS == 0 {
                    driver::live(&scene, number).await
                } else {
                    life::live(&scene, number).await
                }
            }
        });
    }
    if run.kills {
        let scene = Arc::clone(&scene);
        tasks.spawn(async move { scene.kill().await });
    }
    let (since, mut told) = (Instant::now(), Instant::now());
    while !scene.is_over() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if told.elapsed() > Duration::from_secs(30) {
            eprintln!("{:?}: {}", since.elapsed(), scene.figures);
            told = Instant::now();
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a client's life");
    }
    eprintln!("{} clients over {} servers for {:?}: {}", CLIENTS, run.servers, since.elapsed(), scene.figures);
    let violations = scene.violations();
    if violations.is_empty() {
        assert!(scene.figures.looks.get() > 100, "next to nothing was looked at");
        proxy.examine().await;
    }
    proxy.stop().await;
    violations
}

async fn nothing_leaks(run: Run) {
    let violations = soak(run).await;
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_anothers_state_through_one_server() {
    nothing_leaks(Run::over(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_anothers_state_through_sixteen_servers() {
    nothing_leaks(Run::over(16)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_anothers_state_where_reads_are_cached() {
    nothing_leaks(Run { more: "[cache]\nenabled = true\nolap_only = false\n", ..Run::over(4) }).await;
}
