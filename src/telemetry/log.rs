//! Log lines on standard error, as text or JSON, through a filter that a reload may change.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::model::{LogFormat, Telemetry};

/// The filter of this process's log. Logging is one for a process, as the subscriber that tracing keeps is.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for the whole process.
///
/// # Errors
/// A filter that cannot be read, or logging that was started before; for people.
pub fn init(settings: &Telemetry) -> Result<(), String> {
    let (filter, handle) = reload::Layer::new(filter(&settings.log)?);
    let registry = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(true);
    let started = match settings.format {
        LogFormat::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_ansi(false)).try_init(),
    };
    started.map_err(|error| format!("logging cannot be started: {error}"))?;
    let _ = FILTER.set(handle);
    Ok(())
}

/// Takes another filter from now on; nothing where [`init`] was not called.
///
/// # Errors
/// A filter that cannot be read; the one before stays.
pub fn set_filter(text: &str) -> Result<(), String> {
    let Some(handle) = FILTER.get() else { return Ok(()) };
    handle.reload(filter(text)?).map_err(|error| format!("the log filter cannot be changed: {error}"))
}

fn filter(text: &str) -> Result<EnvFilter, String> {
    EnvFilter::builder().parse(text).map_err(|error| format!("the log filter \"{text}\" cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_refused() {
        assert!(filter("info,pgherd=debug").is_ok());
        assert!(filter("in=fo=x").is_err());
    }
}
