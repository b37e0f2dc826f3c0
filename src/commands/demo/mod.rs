//! `pgherd demo`: a herd of throw-away servers, a tour through it, and then a port to try.

mod data;
mod herd;
pub mod servers;
mod show;
mod sources;
mod steps;
mod tour;
mod truth;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::{self, Running};
use crate::config;

use herd::Herd;
use tour::{Entrance, Outcome, Tour, Verdict, readable};
use truth::Truth;

/// Arguments of `pgherd demo`.
#[derive(Debug, Clone, Default, Args)]
pub struct Options {
    /// End after the tour instead of staying up.
    #[arg(long)]
    pub once: bool,
    /// Also print the configuration that the demo runs with.
    #[arg(long)]
    pub show_config: bool,
}

/// `pgherd demo`, on a runtime of its own.
pub fn main(options: &Options) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(options)),
        Err(error) => {
            eprintln!("pgherd demo: cannot start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the servers, takes the tour, and stays up until Ctrl-C or SIGTERM. Fails if one answer is not PostgreSQL's.
async fn run(options: &Options) -> ExitCode {
    let ended = tokio::select! {
        ended = Box::pin(demonstrate(options)) => ended,
        () = stop_signal() => {
            show::line("\nStopping: the servers end and their data are removed.");
            Ok(())
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgherd demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demonstrate(options: &Options) -> Result<(), String> {
    let began = Instant::now();
    show::line("Starting a primary, its streaming replica and two shards, and loading some 210,000 rows ...");
    let herd = tokio::task::spawn_blocking(Herd::start).await.map_err(|error| error.to_string())?;
    let herd = herd.map_err(|error| error.to_string())?;
    let truth = Truth::gather(&herd).await.map_err(|error| readable(&error))?;
    show::line(&format!("They run, after {:.1} s.", began.elapsed().as_secs_f64()));
    if herd.redis.is_none() {
        show::line("Redis is not installed: results are kept in memory only, and the step through Redis is left out.");
    }

    let first = Pgherd::start(&herd, "proxy.toml", 6432).await?;
    let second = if herd.redis.is_some() { Some(Pgherd::start(&herd, "second.toml", 6433).await?) } else { None };
    if options.show_config {
        let text = std::fs::read_to_string(&first.config).map_err(|error| error.to_string())?;
        show::line(&format!("\n{}:\n\n{text}", first.config.display()));
    }
    let outcomes = take_tour(&herd, truth, &first, second.as_ref()).await?;
    let wrong = outcomes.iter().filter(|outcome| matches!(outcome.verdict, Verdict::Wrong(_))).count();
    if wrong > 0 {
        return Err(format!("{wrong} of {} steps did not go as they must", outcomes.len()));
    }
    show::line(&format!("\nAll {} steps went as they must.", outcomes.len()));
    if !options.once {
        stay_up(&first);
        std::future::pending::<()>().await;
    }
    if let Some(second) = second {
        second.running.stop().await;
    }
    first.running.stop().await;
    // The servers stop here, off the runtime's threads: each takes some milliseconds.
    tokio::task::spawn_blocking(move || drop(herd)).await.map_err(|error| error.to_string())
}

async fn take_tour(herd: &Herd, truth: Truth, first: &Pgherd, second: Option<&Pgherd>) -> Result<Vec<Outcome>, String> {
    let open = async |pgherd: &Pgherd, database| {
        Entrance::open(pgherd.running.address(), pgherd.http, database).await.map_err(|error| readable(&error))
    };
    let tour = Tour {
        first: open(first, "shop").await?,
        second: match second {
            Some(second) => Some(open(second, "shop").await?),
            None => None,
        },
        replica: open(first, "shop_replica").await?,
        truth,
        names: herd.names(),
    };
    tour.warm_up().await?;
    let mut outcomes = Vec::new();
    for (at, step) in steps::all(second.is_some()).iter().enumerate() {
        outcomes.push(tour.step(at + 1, step).await?);
    }
    tour::print_summary(&outcomes);
    Ok(outcomes)
}

fn stay_up(first: &Pgherd) {
    let (address, user) = (first.running.address(), data::ROLE);
    show::line("\nThe herd stays up. Try it, in another terminal:\n");
    show::line(&format!("    psql \"host={} port={} user={user} dbname=shop\"", address.ip(), address.port()));
    show::line("    explain (route) select country, count(*) from customers group by country;\n");
    show::line(&format!("    curl http://{}/metrics", first.http));
    show::line(&format!("    configuration: {}\n", first.config.display()));
    show::line("Ctrl-C stops everything and removes the data.");
}

/// A pgherd in this process.
struct Pgherd {
    running: Running,
    http: SocketAddr,
    config: PathBuf,
}

impl Pgherd {
    /// Starts on the wanted port if it is free, else on another.
    async fn start(herd: &Herd, name: &str, wanted: u16) -> Result<Self, String> {
        let port = if std::net::TcpListener::bind(("127.0.0.1", wanted)).is_ok() { wanted } else { 0 };
        let path = herd.write_config(name, port, 0).map_err(|error| error.to_string())?;
        let config = config::load(&path).map_err(|faults| faults.to_string())?;
        let running = app::start(Arc::new(config), Some(path.clone())).await.map_err(|error| format!("{error:?}"))?;
        let http = running.http_address().ok_or("pgherd has no HTTP port")?;
        Ok(Self { running, http, config: path })
    }
}

async fn stop_signal() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut stream) => drop(stream.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => drop(interrupted),
        () = terminated => {}
    }
}
