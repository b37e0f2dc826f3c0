//! Settings: what was typed (`raw`), what was meant (`model`), how one becomes the other (`validate`), and live reload.

pub mod dsn;
mod dsn_uri;
pub mod env;
mod fault;
pub mod keys;
pub mod model;
pub mod names;
mod raw;
pub mod reload;
pub mod units;
mod validate;

use std::path::Path;

pub use fault::{Fault, Faults};
use model::Config;

/// Bytes of a configuration file at most.
const FILE_BYTES: u64 = 4 << 20;

/// A configuration, and what is unwise in it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What was meant.
    pub config: Config,
    /// What is allowed but unwise, to be logged or shown.
    pub warnings: Vec<Fault>,
}

/// Reads and checks a TOML file; `${NAME}` comes from the environment, paths are relative to the file's folder.
///
/// # Errors
/// Every fault at once.
pub fn load(path: &Path) -> Result<Config, Faults> {
    load_with_warnings(path).map(|loaded| loaded.config)
}

/// [`load`], with what is unwise beside it.
///
/// # Errors
/// Every fault at once.
pub fn load_with_warnings(path: &Path) -> Result<Loaded, Faults> {
    let help = "pass the file with --config; proxy.toml shows every table";
    let cannot = |error: std::io::Error| Faults::of_file(path, format!("it cannot be read: {error}"), help);
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if metadata.len() > FILE_BYTES {
        return Err(Faults::of_file(path, format!("it is larger than {FILE_BYTES} bytes"), help));
    }
    let text = std::fs::read_to_string(path).map_err(cannot)?;
    let base = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let base = base.canonicalize().map_err(cannot)?;
    parse(&text, path, &base, &|name| std::env::var(name).ok())
}

/// Checks a TOML text: `file` is only for showing, paths are relative to `base`, `${NAME}` comes from `env`.
///
/// # Errors
/// Every fault at once.
pub fn parse(text: &str, file: &Path, base: &Path, env: env::Lookup<'_>) -> Result<Loaded, Faults> {
    let outcome = validate::text(text, base, env);
    match outcome.config {
        Some(config) => Ok(Loaded { config, warnings: outcome.warnings }),
        None => Err(Faults::new(file, outcome.faults)),
    }
}

#[cfg(test)]
mod documentation_tests;
