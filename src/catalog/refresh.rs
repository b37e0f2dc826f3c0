//! The current snapshot of one database's catalog, and its replacement by a newer one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::Mutex;
use tokio_postgres::Client;

use super::load::{failed, load, read_views};
use super::model::Catalog;
use super::partitions::{self, Partitions};
use super::queries;
use crate::error::Error;

/// Holds the snapshot that planning uses. Readers never wait; one refresh runs at a time.
#[derive(Debug, Default)]
pub struct CatalogHandle {
    current: ArcSwap<Catalog>,
    looked: ArcSwapOption<Instant>,
    partitions: ArcSwapOption<Partitions>,
    measures: AtomicBool,
    digest: Mutex<Option<String>>,
    /// Whether views' definitions are read.
    reads_views: bool,
}

impl CatalogHandle {
    /// A handle with nothing in it: version 0, in which no name is known, so that nothing is cached or fanned out.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, and its snapshots say what views stand for.
    pub fn with_views() -> Self {
        Self { reads_views: true, ..Self::default() }
    }

    /// The newest snapshot.
    pub fn current(&self) -> Arc<Catalog> {
        self.current.load_full()
    }

    /// The current snapshot's version, without taking hold of it.
    pub fn version(&self) -> u64 {
        self.current.load().version
    }

    /// From now on every look also tells how large partitions are.
    pub fn measure_partitions(&self) {
        self.measures.store(true, Ordering::Release);
    }

    /// How large partitions were at the last look; `None` where that is not asked for.
    pub fn partitions(&self) -> Option<Arc<Partitions>> {
        self.partitions.load_full()
    }

    /// When the server was last asked with success, whether or not something had changed.
    pub fn loaded_at(&self) -> Option<Instant> {
        self.looked.load_full().map(|at| *at)
    }

    /// Looks whether the catalog has changed and takes in what did. Returns whether there is a new version.
    ///
    /// `client` must be idle and outside of a transaction. See `queries::DIGEST` for what the cheap look can miss.
    pub async fn refresh(&self, client: &Client) -> Result<bool, Error> {
        let mut digest = self.digest.lock().await;
        let looked = Instant::now();
        // The digest is taken first: what changes between it and the snapshot is then loaded once more, never missed.
        let now: String =
            client.query_one(queries::DIGEST, &[]).await.and_then(|row| row.try_get(0)).map_err(failed)?;
        let mut changed = false;
        if digest.as_ref() != Some(&now) {
            let mut next = load(client).await?;
            let is_whole = !self.reads_views || read_views(client, &mut next).await?;
            let current = self.current.load();
            next.version = current.version;
            changed = next != **current;
            if changed {
                next.version += 1;
                self.current.store(Arc::new(next));
            }
            // What could not be read is asked for again.
            *digest = is_whole.then_some(now);
        }
        if self.measures.load(Ordering::Acquire) {
            self.partitions.store(Some(Arc::new(partitions::load(client).await?)));
        }
        self.looked.store(Some(Arc::new(looked)));
        Ok(changed)
    }
}
