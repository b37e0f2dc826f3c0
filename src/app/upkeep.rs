//! What goes on in the background: health checks, pool figures, and the catalogs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::House;
use super::solo::{Place, SoloLock};
use crate::backend::control::{self, Control};
use crate::cache::{BackendId, ResultCache, WriteSetView};
use crate::error::Error;
use crate::session::context::{Database, Target};

/// How often pools are looked at, and how long a connection may go unused before it is no longer kept at hand; a pool's own interval decides when it is tried.
const ROUND: Duration = Duration::from_secs(1);
/// How long a health check may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(5);

/// Tries the pools at their intervals, and publishes what the primaries said and how full the pools are.
pub(super) async fn check_health(house: Arc<House>) {
    let mut last_checked = std::collections::HashMap::new();
    let mut round = tokio::time::interval(ROUND);
    loop {
        tokio::select! {
            () = house.stop.cancelled() => return,
            _ = round.tick() => {}
        }
        let now = tokio::time::Instant::now();
        // Nobody has to be missed for ever: what somebody gave back while another began to wait is looked for once more.
        house.shared.ledger.settle();
        for database in house.databases.all() {
            let interval = database.config.pool.health_check_interval;
            let due = last_checked.get(&database.config.name).is_none_or(|at| now >= *at + interval);
            for (_, pool) in database.pools() {
                pool.publish_state();
                pool.cool(ROUND);
                if pool.trim() {
                    house.tasks.spawn(async move { pool.refill().await });
                }
            }
            if due && !database.gate.is_shut() {
                last_checked.insert(database.config.name.clone(), now);
                house.tasks.spawn(check_database(Arc::clone(&house), database));
            }
        }
    }
}

async fn check_database(house: Arc<House>, database: Arc<Database>) {
    let mut primary = Err("no user may connect".to_owned());
    let users = house.config.load().users.values().cloned().collect::<Vec<_>>();
    for ((user, target), pool) in database.pools() {
        let health = pool.check_health(CHECK_DEADLINE).await;
        if let Err(error) = &health {
            tracing::warn!(%error, database = database.config.name, user, ?target, "health check failed");
        }
        let holds_tenants = database.config.schemas.is_some() && matches!(target, Target::Shard(_));
        if (target == Target::Primary || holds_tenants)
            && health.is_ok()
            && let Ok(Err(error)) =
                tokio::time::timeout(CHECK_DEADLINE, database.learn_unseen_from(&pool, target)).await
        {
            tracing::warn!(%error, database = database.config.name, user, "cannot read which functions change the session");
        }
        if target == Target::Primary && (primary.is_err() || health.is_ok()) {
            primary = health.map_err(|error| error.to_string());
        }
    }
    if primary.is_err()
        && let Some(user) =
            users.iter().find(|user| user.databases.is_empty() || user.databases.contains(&database.config.name))
    {
        let health = database.pool(user, Target::Primary).check_health(CHECK_DEADLINE).await;
        primary = health.map_err(|error| error.to_string());
    }
    house.readiness.primary(&database.config.name, primary);
}

/// How long to wait before a failed catalog read is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often the catalogs are looked at for changes that nobody made through pgherd.
const CATALOG_ROUND: Duration = Duration::from_secs(5);

/// The same while it is not known yet who else there is.
const UNSETTLED_ROUND: Duration = Duration::from_millis(250);

/// Which catalog is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// The primary's, which the cache depends on.
    Primary,
    /// Shard 0's, by which statements are planned.
    Shards,
    /// That shard's own, which its cache depends on. Without it nothing of that shard is served; all statements go on.
    CacheOf(usize),
    /// The coordinator's. Without it statements that need one are refused; all others go on.
    Coordinator,
}

/// Reads a catalog, and reads it again whenever it may have changed.
pub(super) async fn keep_catalog(house: Arc<House>, database: Arc<Database>, kept: Kept) {
    let mut first = true;
    loop {
        tokio::select! {
            () = database.closed.cancelled() => return,
            () = house.stop.cancelled() => return,
            () = database.gate.opened() => {}
        }
        tokio::select! {
            () = database.closed.cancelled() => return,
            () = house.stop.cancelled() => return,
            // A paused database has no connection to its servers, not even pgherd's own.
            () = database.gate.shut() => {}
            result = keep_connected(&house, &database, kept, &mut first) => if let Err(error) = result {
                tracing::warn!(%error, database = database.config.name, ?kept, "cannot read the catalog");
            },
        }
        if let Some(place) = place_of(&database, kept) {
            place.solo.store(false, Ordering::Release);
        }
        tokio::select! {
            () = database.closed.cancelled() => return,
            () = house.stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn keep_connected(house: &House, database: &Database, kept: Kept, first: &mut bool) -> Result<(), Error> {
    let (target, handle) = match (kept, &database.shard_catalog, &database.coordinator_catalog) {
        (Kept::Shards, Some(handle), _) => (Target::Shard(0), handle),
        (Kept::Coordinator, _, Some(handle)) => (Target::Coordinator, handle),
        (Kept::CacheOf(shard), ..) => match database.shard_caches.get(shard) {
            Some(known) => (Target::Shard(shard), &known.catalog),
            None => return Err(Error::internal("a shard without its cache")),
        },
        _ => (Target::Primary, &database.catalog),
    };
    let control = connect_control(house, database, target).await?;
    let place = place_of(database, kept);
    let mut name = None;
    if let Some(place) = place.as_ref().filter(|_| !database.shard_caches.is_empty()) {
        name = Some(house.names.note(place, &control.client).await?);
    }
    let cache = place.as_ref().and_then(|place| place.cache);
    let mut changes = cache.map(|cache| cache.catalog_epoch());
    let mut run = database.catalog_changed.subscribe();
    let mut known = None;
    let mut solo = SoloLock::default();
    loop {
        if let (Kept::CacheOf(_), Some(name), Some(cache)) = (kept, &name, cache) {
            house.names.see_that_it_has_one(name).inspect_err(|_| cache.catalog_changed())?;
        }
        let settled = match &place {
            Some(place) => solo.keep(place, &control.client).await?,
            None => true,
        };
        let as_of = changes.as_mut().map(|changes| *changes.borrow_and_update());
        run.mark_unchanged();
        let changed = handle.refresh(&control.client).await?;
        if let (Some(cache), Some(as_of)) = (cache, as_of) {
            if changed && known == Some(as_of) {
                // Nobody of the fleet has told of it: it was changed past pgherd, and everybody must know.
                announce_change(cache, handle.current().version).await?;
                continue;
            }
            cache.catalog_loaded(handle.current().version, as_of);
            known = Some(as_of);
        }
        if std::mem::take(first) && matches!(kept, Kept::Primary | Kept::Shards) {
            database.catalog_is_there();
        }
        let epoch_moved = async {
            match &mut changes {
                Some(changes) => changes.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = epoch_moved => {}
            // Whoever changes what is cached says so by the epoch.
            _ = run.changed(), if !matches!(kept, Kept::CacheOf(_)) => {}
            () = tokio::time::sleep(if settled { CATALOG_ROUND } else { UNSETTLED_ROUND }) => {}
        }
    }
}

/// The server whose cache depends on that catalog, if any does.
fn place_of(database: &Database, kept: Kept) -> Option<Place<'_>> {
    let (has_redis, database_name) = (database.cache_config.redis.is_some(), database.config.name.as_str());
    match kept {
        Kept::Primary => Some(Place {
            database: database_name,
            address: &database.config.primary,
            cache: database.cache.as_ref(),
            solo: &database.solo,
            scope: &database.scope,
            has_redis,
            is_shard: false,
        }),
        Kept::CacheOf(shard) => {
            let known = database.shard_caches.get(shard)?;
            Some(Place {
                database: database_name,
                address: database.config.shards.get(shard)?,
                cache: Some(&known.cache),
                solo: &known.solo,
                scope: &known.scope,
                has_redis,
                is_shard: true,
            })
        }
        Kept::Shards | Kept::Coordinator => None,
    }
}

/// Tells all pgherds of the fleet that the catalog is another one, as a statement of this one's that changed it would.
async fn announce_change(cache: &ResultCache, version: u64) -> Result<(), Error> {
    let mut doubt = cache.epochs().open(BackendId { pid: 0, start_us: 0 });
    let writes = WriteSetView { database: true, catalog: true, relations: &[], catalog_version: version };
    let raised = doubt.raise(&writes).await;
    doubt.settle();
    raised
}

/// A control connection, as the first user who can log in.
pub(super) async fn connect_control(house: &House, database: &Database, target: Target) -> Result<Control, Error> {
    let config = house.config.load_full();
    let mut result = Err(Error::internal("no user may connect to this database"));
    for user in config.users.values() {
        if !user.databases.is_empty() && !user.databases.contains(&database.config.name) {
            continue;
        }
        result = control::connect(database.address(target), &database.login(user, target)).await;
        if result.is_ok() {
            break;
        }
    }
    result
}
