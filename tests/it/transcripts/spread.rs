//! Transcripts before a pgherd whose table `spread` lies on two shards; all else is on its primary.

use std::fmt::Write as _;

use super::SETUP;
use crate::harness::{self, Database, Pgherd};

/// The rows of this shard alone.
const OWN_ROWS: &str = "create table by_int (k int4) partition by hash (k);
    delete from spread where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, k);
    drop table by_int;";
const SHARDS: usize = 2;

/// One PostgreSQL that has all rows, and a pgherd.
pub(super) struct Spread {
    pub(super) straight: Database,
    pub(super) pgherd: Pgherd,
}

impl Spread {
    /// `more` is more TOML.
    pub(super) async fn start(more: &str) -> Self {
        let (straight, primary) = (harness::fresh_database().await, harness::fresh_database().await);
        let shards = harness::fresh_databases(SHARDS).await;
        for database in shards.iter().chain([&straight, &primary]) {
            database.execute(SETUP).await;
        }
        primary.execute("drop table spread").await;
        let role = "do $$ begin create role decider login superuser; \
                    exception when duplicate_object or unique_violation then null; end $$";
        primary.execute(role).await;
        let mut toml =
            format!("[[database]]\nname = \"{}\"\nprimary = \"{}\"\nshards = [", straight.name, primary.conninfo());
        for (at, shard) in shards.iter().enumerate() {
            shard.execute("drop table t, empty, deferred, other.t").await;
            shard.execute(&OWN_ROWS.replace("%shards%", &SHARDS.to_string()).replace("%shard%", &at.to_string())).await;
            let _ = write!(toml, "\"{}\", ", shard.conninfo());
        }
        toml += "]\ntwo_phase = { user = \"decider\" }\n\
                 [[database.table]]\nname = \"public.spread\"\nshard_key = \"k\"\nmethod = \"hash\"\n\
                 [[user]]\nname = \"postgres\"\nauth = \"trust\"\n[pool]\nmin_connections = 0\n";
        toml += more;
        Self { straight, pgherd: Pgherd::start(&toml).await }
    }

    /// The same database, reached through pgherd.
    pub(super) fn behind(&self) -> Database {
        Database { port: self.pgherd.port, ..self.straight.clone() }
    }
}
