//! What all databases share that lie on one server: its result cache, its catalog, and whether this pgherd is the only one there.
//! A shard is, to the cache, a server as any other.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use tokio_postgres::Client;

use super::checker::Checker;
use super::solo::{Place, read_scope};
use super::{House, figures, flags, follow};
use crate::cache::ResultCache;
use crate::catalog::refresh::CatalogHandle;
use crate::config::model::{Cache as CacheConfig, Config, Consistency, Database as DatabaseConfig, ServerAddress};
use crate::error::{Error, ErrorKind};
use crate::session::context::{Database, ShardCache, Target};
use crate::wire::sqlstate::SqlState;

/// What all databases of one server share.
#[derive(Clone, Default)]
pub(super) struct Home {
    pub(super) cache: Option<Arc<ResultCache>>,
    pub(super) solo: Arc<AtomicBool>,
    pub(super) catalog: Arc<CatalogHandle>,
}

/// The database on a server that an address of a `[[database]]` means, whatever clients call it.
pub(super) fn place_of(database: &DatabaseConfig, address: &ServerAddress) -> String {
    format!("{}:{}/{}", address.host, address.port, address.dbname.as_deref().unwrap_or(&database.name))
}

/// Under which addresses of the configuration each server goes: what is written under one would not be seen under another.
#[derive(Default)]
pub(super) struct Names(Mutex<HashMap<String, HashSet<String>>>);

impl Names {
    /// Notes that the server which answers there goes by that address. Returns its own name.
    pub(super) async fn note(&self, place: &Place<'_>, client: &Client) -> Result<String, Error> {
        let server = read_scope(client).await?;
        let dbname = place.address.dbname.as_deref().unwrap_or(place.database);
        let address = format!("{}:{}/{dbname}", place.address.host, place.address.port);
        self.0.lock().entry(server.clone()).or_default().insert(address);
        Ok(server)
    }

    /// Whether it goes by one address.
    ///
    /// # Errors
    /// It goes by several.
    pub(super) fn see_that_it_has_one(&self, server: &str) -> Result<(), Error> {
        let names = self.0.lock();
        let Some(known) = names.get(server).filter(|known| known.len() > 1) else { return Ok(()) };
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let message = format!("{} are one server: nothing of it is cached by shard", known.join(" and "));
        Err(Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message).hint("Write its address alike."))
    }
}

/// Which of a database's servers is at that place.
pub(super) fn target_at(database: &Database, place: &str) -> Option<Target> {
    let config = &database.config;
    let is_it = |address: &ServerAddress| place_of(config, address) == place;
    match is_it(&config.primary) {
        true => Some(Target::Primary),
        false => config.shards.iter().position(is_it).map(Target::Shard),
    }
}

/// Whether what lies on this database's shards is cached.
fn caches_shards(database: &DatabaseConfig, config: &Config) -> bool {
    // What is at most so old is not of one moment.
    let is_wanted = config.cache.enabled && config.cache.shards && config.cache.consistency == Consistency::Strict;
    is_wanted && database.cache && database.is_distributed()
}

impl House {
    /// What the databases of that primary share; made when the first of them is opened. There is a cache if any of them wants
    /// one: the others only mark what they write.
    pub(super) fn home(self: &Arc<Self>, wanted: &DatabaseConfig, config: &Config) -> Home {
        self.home_at(&place_of(wanted, &wanted.primary), config)
    }

    /// What is cached of each shard; nothing where it is not wanted.
    pub(super) fn shard_caches(self: &Arc<Self>, wanted: &DatabaseConfig, config: &Config) -> Vec<ShardCache> {
        let of = |address: &ServerAddress| {
            let Home { cache, solo, catalog } = self.home_at(&place_of(wanted, address), config);
            Some(ShardCache { cache: cache?, solo, catalog, scope: Default::default() })
        };
        // All of them or none: they are told of writes by number.
        let all: Option<Vec<ShardCache>> = wanted.shards.iter().map(of).collect();
        all.filter(|_| config.cache.shards && wanted.is_distributed()).unwrap_or_default()
    }

    fn home_at(self: &Arc<Self>, place: &str, config: &Config) -> Home {
        let mut homes = self.homes.lock();
        let home = homes.entry(place.to_owned()).or_default();
        if home.cache.is_none()
            && config.cache.enabled
            && let Some((database, shard)) = config.databases.values().find_map(|it| wants(it, place, config))
        {
            home.cache = self.open_cache(database, shard, config, &home.solo);
        }
        home.clone()
    }

    fn open_cache(
        self: &Arc<Self>,
        wanted: &DatabaseConfig,
        shard: Option<usize>,
        config: &Config,
        solo: &Arc<AtomicBool>,
    ) -> Option<Arc<ResultCache>> {
        let address = shard.and_then(|shard| wanted.shards.get(shard)).unwrap_or(&wanted.primary);
        let place = place_of(wanted, address);
        let name = shard.map_or_else(|| wanted.name.clone(), |shard| format!("{}/shard{shard}", wanted.name));
        let settings = settings_of(wanted, shard, config);
        #[cfg(feature = "faults")]
        let cache = ResultCache::with_faults(&name, &settings, Arc::clone(solo), self.faults);
        #[cfg(not(feature = "faults"))]
        let cache = ResultCache::new(&name, &settings, Arc::clone(solo));
        let cache = match cache {
            Ok(cache) => cache,
            Err(error) => {
                tracing::error!(%error, database = name, "no cache");
                return None;
            }
        };
        self.metrics.register_cache(&name, figures::of_cache(&cache));
        let is_shard = config.databases.values().any(|database| {
            caches_shards(database, config) && database.shards.iter().any(|it| place_of(database, it) == place)
        });
        let checker = Checker::new(Arc::downgrade(self), wanted.name.clone(), place.clone(), is_shard);
        self.tasks.spawn(Arc::clone(&cache).run(Arc::new(checker), self.stop.clone()));
        if let Some(redis) = &settings.redis {
            // Nothing is served before it has looked for the first time.
            cache.begin_watch();
            let (house, name) = (Arc::downgrade(self), wanted.name.clone());
            self.tasks.spawn(flags::keep_watch(house, name, place, Arc::clone(&cache), redis.lease));
        }
        if let Some(wal) = &settings.wal {
            let (house, name) = (Arc::downgrade(self), wanted.name.clone());
            self.tasks.spawn(follow::keep_following(house, name, Arc::clone(&cache), wal.clone()));
        }
        Some(cache)
    }
}

/// Whether a database wants what lies at that place to be cached, and as which of its shards.
fn wants<'c>(
    database: &'c DatabaseConfig,
    place: &str,
    config: &Config,
) -> Option<(&'c DatabaseConfig, Option<usize>)> {
    let is_it = |address: &ServerAddress| place_of(database, address) == place;
    if database.cache && is_it(&database.primary) {
        return Some((database, None));
    }
    let shard = database.shards.iter().position(is_it).filter(|_| caches_shards(database, config))?;
    Some((database, Some(shard)))
}

/// `[cache]` for one server: memory is shared out among a database's servers, and the primary's WAL alone is followed.
fn settings_of(database: &DatabaseConfig, shard: Option<usize>, config: &Config) -> CacheConfig {
    let mut settings = config.cache.clone();
    if caches_shards(database, config) {
        settings.memory_bytes /= database.shards.len() as u64 + 1;
        let most = usize::try_from(settings.memory_bytes).unwrap_or(usize::MAX);
        settings.max_entry_bytes = settings.max_entry_bytes.min(most);
    }
    if shard.is_some() {
        // A check of a hit runs the client's statement again, which no shard was asked.
        (settings.wal, settings.audit_one_in) = (None, 0);
    }
    settings
}
