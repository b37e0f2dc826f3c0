//! Accounts over shards behind pgherd, with a role that writes decisions.

use std::fmt::Write as _;
use std::time::Duration;

use crate::answers::Answer;
use crate::harness::wire::WireClient;
use crate::harness::{self, Database, Pgherd};

/// Tables of every shard. Accounts 1 to 40 have 100 each.
pub(super) const SCHEMA: &str = "
create table accounts (id int4 primary key, owner text, balance int8 not null check (balance >= 0), at timestamptz default now());
create table entries (account_id int4 not null, id bigserial, amount int8 not null, note text default 'none');
create table rates (code text primary key, rate numeric not null);
create table by_int (k int4) partition by hash (k);
insert into accounts (id, owner, balance) select g, 'owner ' || g, 100 from generate_series(1, 40) g;
delete from accounts where not satisfies_hash_partition('by_int'::regclass, %shards%, %shard%, id);
insert into rates values ('a', 1), ('b', 2);
";

pub(super) struct Stage {
    pub(super) primary: Database,
    pub(super) shards: Vec<Database>,
    pub(super) toml: String,
}

impl Stage {
    pub(super) async fn set(shards: usize) -> Self {
        Self::over(harness::fresh_databases(shards).await, "").await
    }

    /// `rest` goes into `[[database]]`; it may hold `two_phase` and tables of its own.
    pub(super) async fn over(shards: Vec<Database>, rest: &str) -> Self {
        Self::between(harness::fresh_database().await, shards, rest).await
    }

    /// As [`Stage::over`], with a primary of the caller's.
    pub(super) async fn between(primary: Database, shards: Vec<Database>, rest: &str) -> Self {
        primary.execute("create table local_notes (id int4, note text)").await;
        for database in shards.iter().chain([&primary]) {
            // Roles belong to servers, which may hold several of the databases.
            let role = "do $$ begin create role decider login superuser; \
                        exception when duplicate_object or unique_violation then null; end $$";
            database.execute(role).await;
        }
        let mut toml = format!("[[database]]\nname = \"app\"\nprimary = \"{}\"\nshards = [", primary.conninfo());
        for (at, shard) in shards.iter().enumerate() {
            let schema = SCHEMA.replace("%shards%", &shards.len().to_string()).replace("%shard%", &at.to_string());
            shard.execute(&schema).await;
            let _ = write!(toml, "\"{}\", ", shard.conninfo());
        }
        toml += "]\n";
        if !rest.contains("two_phase") {
            toml += "two_phase = { user = \"decider\", lock_timeout = \"2s\" }\n";
        }
        toml += rest;
        toml += "\n[[database.table]]\nname = \"public.accounts\"\nshard_key = \"id\"\nmethod = \"hash\"\n\
                 [[database.table]]\nname = \"public.entries\"\nshard_key = \"account_id\"\nmethod = \"hash\"\n\
                 [[database.table]]\nname = \"public.rates\"\nreference = true\n\
                 [[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
                 [pool]\nmin_connections = 0\nmax_connections = 40\nacquire_timeout = \"5s\"\nconnect_timeout = \"5s\"\n";
        Self { primary, shards, toml }
    }

    pub(super) async fn pgherd(&self) -> Pgherd {
        Pgherd::start(&self.toml).await
    }

    /// An account of each shard, by shard.
    pub(super) async fn one_of_each(&self) -> Vec<i32> {
        let mut accounts = Vec::new();
        for shard in &self.shards {
            let row = shard.client().await.query_one("select min(id) from accounts", &[]).await.expect("read");
            accounts.push(row.get(0));
        }
        accounts
    }

    /// What an account has, straight from its shard; `None` if nobody has it.
    pub(super) async fn balance(&self, account: i32) -> Option<i64> {
        for shard in &self.shards {
            let client = shard.client().await;
            let row = client.query_opt("select balance from accounts where id = $1", &[&account]).await.expect("read");
            if let Some(row) = row {
                return Some(row.get(0));
            }
        }
        None
    }

    /// Prepared transactions and decisions that are left, on all servers.
    pub(super) async fn left_over(&self) -> (i64, i64) {
        let (mut prepared, mut decided) = (0, 0);
        for database in self.shards.iter().chain([&self.primary]) {
            let client = database.client().await;
            let sql = "select count(*) from pg_prepared_xacts where database = current_database()";
            prepared += client.query_one(sql, &[]).await.expect("read").get::<_, i64>(0);
            let table = client.query_one("select to_regclass('pgherd.decision') is not null", &[]).await.expect("read");
            if table.get(0) {
                decided +=
                    client.query_one("select count(*) from pgherd.decision", &[]).await.expect("read").get::<_, i64>(0);
            }
        }
        (prepared, decided)
    }

    /// Waits until nothing is left of transactions over several shards.
    pub(super) async fn is_clean(&self) {
        harness::eventually(Duration::from_secs(30), "all transactions are finished and forgotten", async || {
            self.left_over().await == (0, 0)
        })
        .await;
    }
}

pub(super) async fn say(client: &mut WireClient, text: &str) -> Answer {
    Answer::read(&client.query(text).await)
}

/// As [`say`], for what must work; its tag.
pub(super) async fn ok(client: &mut WireClient, text: &str) -> String {
    let answer = say(client, text).await;
    assert_eq!(answer.error, None, "{text}");
    answer.tag
}
