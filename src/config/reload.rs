//! Live reload: the file is read again when it changes and at SIGHUP; a good one is handed on, a bad one changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::model::{Cache, Config, Redis, User};
use super::{Faults, load_with_warnings};

/// How long to wait after a change for the changes that belong to it: editors write, rename and touch in turns.
const SETTLE: Duration = Duration::from_millis(150);

/// One file under watch.
pub struct Reload {
    path: PathBuf,
    sender: watch::Sender<Arc<Config>>,
    /// Faults that were logged last, so that other changes in the folder do not repeat them.
    reported: Option<Faults>,
}

/// Why the file is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// Something in its folder changed.
    Change,
    /// SIGHUP: what it names (passwords, certificates) may have changed too.
    Hangup,
}

impl Reload {
    /// Prepares to watch `path`, from which `config` was loaded. Every receiver sees the newest good configuration.
    pub fn new(path: &Path, config: Arc<Config>) -> (Self, watch::Receiver<Arc<Config>>) {
        let (sender, receiver) = watch::channel(config);
        (Self { path: path.to_path_buf(), sender, reported: None }, receiver)
    }

    /// Watches until `stop`. `report` learns of each reload whether it was good, for metrics.
    pub async fn run(mut self, stop: CancellationToken, report: impl Fn(bool) + Send) {
        let (notices, mut changes) = mpsc::channel(1);
        let _watcher = match watch_folders(&self.path, notices) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!(%error, file = %self.path.display(), "the file cannot be watched; SIGHUP still reloads it");
                None
            }
        };
        let Ok(mut hangups) = signal(SignalKind::hangup()) else {
            warn!("SIGHUP cannot be listened for");
            return;
        };
        // Between the first load and the watch the file may have changed.
        self.read_again(Cause::Change, &report);
        loop {
            let cause = tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = hangups.recv() => Cause::Hangup,
                Some(()) = changes.recv() => Cause::Change,
                else => return,
            };
            if cause == Cause::Change {
                tokio::time::sleep(SETTLE).await;
                let _ = changes.try_recv();
            }
            self.read_again(cause, &report);
        }
    }

    fn read_again(&mut self, cause: Cause, report: &impl Fn(bool)) {
        let loaded = match load_with_warnings(&self.path) {
            Ok(loaded) => loaded,
            Err(faults) => {
                if cause == Cause::Hangup || self.reported.as_ref() != Some(&faults) {
                    error!("the configuration stays as it is; {faults}");
                    report(false);
                }
                self.reported = Some(faults);
                return;
            }
        };
        let was_bad = self.reported.take().is_some();
        let before = self.sender.borrow().clone();
        if *before == loaded.config && cause == Cause::Change {
            if was_bad {
                info!("the configuration is good again, and as it was");
                report(true);
            }
            return;
        }
        for warning in &loaded.warnings {
            warn!("{warning}");
        }
        self.sender.send_replace(Arc::new(loaded.config));
        info!(file = %self.path.display(), "the configuration was reloaded");
        report(true);
    }
}

/// Keys that differ and are read only once. `keys` marks them as [`Applies::Restart`](super::keys::Applies::Restart).
pub fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let changed = [
        ("threads", before.threads != after.threads),
        ("listen.address", before.listen.address != after.listen.address),
        ("listen.unix_socket_dir", before.listen.unix_socket_dir != after.listen.unix_socket_dir),
        ("listen.http", before.listen.http != after.listen.http),
        ("listen.shutdown_timeout", before.listen.shutdown_timeout != after.listen.shutdown_timeout),
        ("listen.drain_delay", before.listen.drain_delay != after.listen.drain_delay),
        ("listen.handover", before.listen.handover != after.listen.handover),
        ("user.max_connections", connection_limits_differ(before, after)),
        ("telemetry.format", before.telemetry.format != after.telemetry.format),
    ];
    let of_tables = cache_changes(&before.cache, &after.cache).into_iter().chain(fanout_changes(before, after));
    changed.into_iter().chain(of_tables).filter_map(|(key, differs)| differs.then_some(key)).collect()
}

/// Users that are new or gone need no restart.
fn connection_limits_differ(before: &Config, after: &Config) -> bool {
    let differs = |(name, user): (&String, &Arc<User>)| {
        after.users.get(name).is_some_and(|now| now.max_connections != user.max_connections)
    };
    before.users.iter().any(differs)
}

fn cache_changes(before: &Cache, after: &Cache) -> Vec<(&'static str, bool)> {
    let (old, new) = (before.redis.as_ref(), after.redis.as_ref());
    let (wal_before, wal_after) = (before.wal.as_ref(), after.wal.as_ref());
    let on_loss = |redis: Option<&Redis>| redis.map(|redis| redis.on_loss);
    vec![
        ("cache.enabled", before.enabled != after.enabled),
        ("cache.ttl", before.ttl != after.ttl),
        ("cache.memory", before.memory_bytes != after.memory_bytes),
        ("cache.max_entry", before.max_entry_bytes != after.max_entry_bytes),
        ("cache.consistency", before.consistency != after.consistency),
        ("cache.olap_only", before.olap_only != after.olap_only),
        ("cache.min_cost", before.min_cost != after.min_cost),
        ("cache.in_transactions", before.in_transactions != after.in_transactions),
        ("cache.audit_one_in", before.audit_one_in != after.audit_one_in),
        ("cache.stale_on_error", before.stale_on_error != after.stale_on_error),
        ("cache.share_roles", before.share_roles != after.share_roles),
        ("cache.shards", before.shards != after.shards),
        ("cache.tables", before.tables != after.tables),
        ("cache.statements", before.statements != after.statements),
        ("cache.on_redis_loss", on_loss(old) != on_loss(new)),
        ("cache.redis.url", old.map(|redis| &redis.url) != new.map(|redis| &redis.url)),
        ("cache.redis.ttl", old.map(|redis| redis.ttl) != new.map(|redis| redis.ttl)),
        ("cache.redis.timeout", old.map(|redis| redis.timeout) != new.map(|redis| redis.timeout)),
        ("cache.redis.prefix", old.map(|redis| &redis.prefix) != new.map(|redis| &redis.prefix)),
        ("cache.redis.lease", old.map(|redis| redis.lease) != new.map(|redis| redis.lease)),
        ("cache.redis.replicas", old.map(|redis| redis.replicas) != new.map(|redis| redis.replicas)),
        ("cache.redis.max_entry", old.map(|redis| redis.max_entry_bytes) != new.map(|redis| redis.max_entry_bytes)),
        (
            "cache.redis.compress_above",
            old.map(|redis| redis.compress_above_bytes) != new.map(|redis| redis.compress_above_bytes),
        ),
        ("cache.redis.ca", old.map(|redis| &redis.ca) != new.map(|redis| &redis.ca)),
        ("cache.wal.publication", wal_before.map(|wal| &wal.publication) != wal_after.map(|wal| &wal.publication)),
        ("cache.wal.max_lag", wal_before.map(|wal| wal.max_lag) != wal_after.map(|wal| wal.max_lag)),
    ]
}

fn fanout_changes(before: &Config, after: &Config) -> Vec<(&'static str, bool)> {
    let (before, after) = (&before.fanout, &after.fanout);
    vec![
        ("fanout.max_parallel", before.max_parallel != after.max_parallel),
        ("fanout.memory", before.memory_bytes != after.memory_bytes),
        ("fanout.pure_functions", before.pure_functions != after.pure_functions),
        ("fanout.query_timeout", before.query_timeout != after.query_timeout),
        ("fanout.max_shipped_rows", before.max_shipped_rows != after.max_shipped_rows),
        ("fanout.max_shipped_bytes", before.max_shipped_bytes != after.max_shipped_bytes),
        ("fanout.key_list_max", before.key_list_max != after.key_list_max),
        ("fanout.key_moves", before.key_moves != after.key_moves),
    ]
}

/// Watches folders, not the file: editors and Kubernetes put another file, or another link, in its place.
fn watch_folders(path: &Path, notices: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
        // Reading the file is an event too; heeding it would never end.
        let is_change = event.map_or(true, |event| !matches!(event.kind, EventKind::Access(_)));
        if is_change {
            // A full channel holds a notice already.
            let _ = notices.try_send(());
        }
    })?;
    let folder = folder_of(path);
    watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    if let Ok(target) = path.canonicalize()
        && folder.canonicalize().ok().as_deref() != target.parent()
    {
        watcher.watch(&folder_of(&target), RecursiveMode::NonRecursive)?;
    }
    Ok(watcher)
}

fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests;
