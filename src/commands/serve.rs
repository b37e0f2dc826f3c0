//! `pgherd serve`: configuration, logging and runtime first, then the house until it is told to stop.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use crate::app;
use crate::config::{self, Loaded};
use crate::telemetry::log;

/// Runs pgherd from that file; returns when it has ended.
pub fn run(path: &Path) -> ExitCode {
    match prepare(path).and_then(|(loaded, runtime)| serve(loaded, path, &runtime)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("pgherd: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn prepare(path: &Path) -> Result<(Loaded, Runtime), String> {
    let loaded = config::load_with_warnings(path).map_err(|faults| faults.to_string())?;
    log::init(&loaded.config.telemetry)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = runtime();
    Ok((loaded, runtime.map_err(|error| format!("the runtime cannot be started: {error}"))?))
}

fn serve(loaded: Loaded, path: &Path, runtime: &Runtime) -> Result<(), String> {
    let house = app::run(Arc::new(loaded.config), Some(path.to_path_buf()));
    runtime.block_on(house).map_err(|error| {
        let mut text = error.message().to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            text = format!("{text}: {cause}");
        }
        error.hint_text().map_or(text.clone(), |hint| format!("{text}\n  -> {hint}"))
    })
}

/// The runtime of the first thread; pgherd starts others itself when it needs them.
///
/// # Errors
/// The system gives no epoll.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
