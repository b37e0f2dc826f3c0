//! One database, and copies of it that have only their shard's rows.

use std::fmt::Write as _;

use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};

/// Who asks: nobody who could harm the server.
const ROLE: &str = "replayer";

/// How long PostgreSQL may take for one statement.
const TIMEOUT: &str = "set statement_timeout = '4s'";

/// See the module's description.
pub(super) struct Copies {
    pub(super) whole: Database,
    pgherd: Pgherd,
}

impl Copies {
    /// Copies of `whole`, which nobody may be connected to. `keyed` are sharded tables of schema public and their keys; all its
    /// other tables are reference tables.
    pub(super) async fn new(whole: Database, keyed: &[(&str, &str)], shards: usize) -> Self {
        let grants = format!(
            "do $$ begin create role {ROLE} login; exception when duplicate_object then null; end $$;
             grant usage on schema public to {ROLE}; grant select on all tables in schema public to {ROLE}; analyze"
        );
        whole.execute(&grants).await;
        let tables = whole
            .client()
            .await
            .query(
                "select relname::text from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace",
                &[],
            )
            .await
            .expect("tables");
        let tables: Vec<String> = tables.iter().map(|row| row.get(0)).collect();
        let primary = copy(&whole).await;
        let drops: String = tables.iter().map(|table| format!("drop table if exists \"{table}\" cascade;")).collect();
        primary.execute(&drops).await;
        let conninfo = |database: &Database| database.conninfo().replace("user=postgres", &format!("user={ROLE}"));
        let mut toml = format!(
            "[pool]\nmin_connections = 0\n[cache]\nenabled = false\n[[user]]\nname = \"{ROLE}\"\nauth = \"trust\"\n\
             [[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [",
            conninfo(&primary)
        );
        for shard in 0..shards {
            let part = copy(&whole).await;
            let mut own = String::new();
            for (table, key) in keyed {
                let _ = write!(
                    own,
                    "do $$ begin execute format('create table its_parts (k %s) partition by hash (k)',
                       (select format_type(atttypid, null) from pg_attribute where attrelid = '{table}'::regclass and attname = '{key}')); end $$;
                     delete from {table} where not satisfies_hash_partition('its_parts'::regclass, {shards}, {shard}, {key});
                     drop table its_parts;"
                );
            }
            part.execute(&own).await;
            let _ = write!(toml, "\"{}\", ", conninfo(&part));
        }
        toml += "]\n";
        for table in &tables {
            let name = format!("[[database.table]]\nname = \"public.{table}\"\n");
            let _ = match keyed.iter().find(|(keyed, _)| keyed == table) {
                Some((_, key)) => write!(toml, "{name}shard_key = \"{key}\"\nmethod = \"hash\"\n"),
                None => writeln!(toml, "{name}reference = true"),
            };
        }
        Self { whole, pgherd: Pgherd::start(&toml).await }
    }

    /// Straight to the one PostgreSQL.
    pub(super) async fn oracle(&self) -> WireClient {
        settled(WireClient::login(self.whole.port, ROLE, &self.whole.name).await).await
    }

    /// Through pgherd.
    pub(super) async fn client(&self) -> WireClient {
        settled(WireClient::login(self.pgherd.port, ROLE, "app").await).await
    }

    pub(super) async fn stop(self) {
        self.pgherd.stop().await;
    }
}

async fn settled(mut client: WireClient) -> WireClient {
    client.query(TIMEOUT).await;
    client
}

async fn copy(whole: &Database) -> Database {
    let copy = Database { name: harness::unique("copy"), port: whole.port };
    let server = harness::connect(&format!("host=127.0.0.1 port={} user=postgres dbname=postgres", whole.port)).await;
    let create = format!("create database {} template {} strategy file_copy", copy.name, whole.name);
    // Sessions of ours end a moment after they were dropped.
    harness::eventually(std::time::Duration::from_secs(60), "the database can be copied", async || {
        match server.batch_execute(&create).await {
            Ok(()) => true,
            Err(error) if error.code().is_some_and(|code| code.code() == "55006") => false,
            Err(error) => panic!("{create}: {error:?}"),
        }
    })
    .await;
    copy
}
