//! What goes on in the background: health checks, pool figures, and the catalogs.

use std::sync::Arc;
use std::time::Duration;

use super::House;
use crate::session::context::{Database, Target};

/// How often pools are looked at; a pool's own interval decides when it is tried.
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
        for database in house.databases.all() {
            let interval = database.config.pool.health_check_interval;
            let due = last_checked.get(&database.config.name).is_none_or(|at| now >= *at + interval);
            for (_, pool) in database.pools() {
                pool.publish_state();
            }
            if due {
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
