//! `pgherd check`: reads the TOML, then tries all that it names, and says what is wrong before clients do.

mod client;
mod definitions;
mod layout;
mod report;
mod rest;
mod rows;
mod servers;
mod tables;
mod tenants;
mod transactions;
mod wal;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

pub use report::{Finding, Level, Report};

use crate::config::{self, Faults};
use crate::net::tls::ClientTls;

/// `pgherd check` as a command: prints what it finds; fails if there is a fault.
pub fn main(path: &Path) -> ExitCode {
    let runtime = match super::serve::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pgherd: the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(Box::pin(run(path))) {
        Ok(report) => {
            // Whoever reads may have gone away (`pgherd check | head`); the exit code still tells.
            let _ = writeln!(io::stdout().lock(), "{report}");
            if report.count(Level::Fault) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(faults) => {
            eprintln!("{faults}");
            ExitCode::FAILURE
        }
    }
}

/// Loads the file and tries everything.
///
/// # Errors
/// The file's own faults; then nothing is tried.
pub async fn run(path: &Path) -> Result<Report, Faults> {
    let loaded = config::load_with_warnings(path)?;
    let mut report = Report::default();
    let file = path.display().to_string();
    report.ok(&file, "every key is known and every value makes sense");
    for warning in &loaded.warnings {
        let line = warning.line.map_or(String::new(), |line| format!("line {line}: "));
        report.warning(&file, format!("{line}{}: {}", warning.path, warning.problem), &warning.help);
    }
    let config = &loaded.config;
    let tls = ClientTls::new();
    rest::tls(config, &tls, &mut report);
    let mut databases = Vec::new();
    for database in config.databases.values() {
        let servers = Box::pin(servers::try_all(config, database, &tls, &mut report)).await;
        databases.push((&**database, servers));
    }
    servers::compare_capacity(config, &databases, &mut report);
    for (database, servers) in &mut databases {
        Box::pin(wal::check(config, database, servers, &tls, &mut report)).await;
        Box::pin(transactions::check(database, servers, &tls, &mut report)).await;
        Box::pin(layout::check(database, config.fanout.key_moves, servers, &mut report)).await;
        Box::pin(tenants::check(database, servers, &mut report)).await;
        let pure_functions = &config.fanout.pure_functions;
        Box::pin(definitions::check(database, pure_functions, servers, &mut report)).await;
    }
    rest::redis(config, &mut report).await;
    Ok(report)
}
