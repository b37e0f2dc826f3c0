//! Where the lives are lived: a pgherd before one database, its like beside it, and who kills servers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::harness::Database;

/// Violations after which a run ends.
const ENOUGH: usize = 8;

/// A count that many add to.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) lives: Count,
    pub(super) steps: Count,
    pub(super) looks: Count,
    pub(super) deaths: Count,
    /// Lives that ended with their server.
    pub(super) lost: Count,
    /// Lives that ended by a refusal.
    pub(super) refused: Count,
    pub(super) pinned: Count,
    pub(super) cancels: Count,
    pub(super) kills: Count,
    pub(super) by_driver: Count,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} lives, {} steps and {} looks compared, {} of a driver's; {} deaths, {} lost to {} kills, {} refused; \
             {} steps that pin, {} cancels",
            self.lives.get(),
            self.steps.get(),
            self.looks.get(),
            self.by_driver.get(),
            self.deaths.get(),
            self.lost.get(),
            self.kills.get(),
            self.refused.get(),
            self.pinned.get(),
            self.cancels.get()
        )
    }
}

/// What all lives share.
pub(super) struct Scene {
    pub(super) port: u16,
    /// The database behind pgherd.
    pub(super) behind: Database,
    /// The twins'.
    pub(super) beside: Database,
    pub(super) roles: [String; 2],
    pub(super) seed: u64,
    pub(super) kills: bool,
    pub(super) until: Instant,
    pub(super) figures: Figures,
    violations: Mutex<Vec<String>>,
}

/// What every life finds, on both sides.
fn setup([one, other]: &[String; 2]) -> String {
    let who = |schema: &str| {
        format!(
            "create schema if not exists {schema}; create table {schema}.who (name text); \
             insert into {schema}.who values ('who in {schema}'); grant usage on schema {schema} to public; \
             grant select on {schema}.who to public;"
        )
    };
    let schemas = ["public", "a", "b", one, other].map(who).join("\n");
    format!(
        "{schemas}
         create table rows (owner text, n int);
         create index on rows (owner);
         create table triggers (value text);
         create function hides(text) returns text language plpgsql as
             $$ begin perform set_config('app.hidden', $1, false); return $1; end $$;
         create procedure hides_too(text) language plpgsql as
             $$ begin perform set_config('app.hidden', $1, false); end $$;
         create function fires() returns trigger language plpgsql as
             $$ begin perform set_config('app.hidden', new.value, false); return null; end $$;
         create trigger fires before insert on triggers for each row execute function fires();
         grant all on rows, triggers to public;"
    )
}

impl Scene {
    pub(super) async fn set(
        port: u16,
        [behind, beside]: [Database; 2],
        roles: [String; 2],
        seed: u64,
        time: Duration,
        kills: bool,
    ) -> Self {
        Self {
            port,
            behind,
            beside,
            roles,
            seed,
            kills,
            until: Instant::now() + time,
            figures: Figures::default(),
            violations: Mutex::default(),
        }
    }

    pub(super) async fn furnish(databases: &[Database; 2], roles: &[String; 2]) {
        for role in roles {
            databases[0].execute(&format!("create role {role}")).await;
        }
        for database in databases {
            database.execute(&setup(roles)).await;
        }
    }

    /// Whether it is time to end, or enough was found.
    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until || self.violations.lock().expect("whole").len() >= ENOUGH
    }

    /// Notes what must never be.
    pub(super) fn wrong(&self, life: u64, said: &[String], what: String) {
        let story = said.iter().rev().take(60).rev().map(|it| format!("  {it}\n")).collect::<String>();
        self.violations
            .lock()
            .expect("whole")
            .push(format!("life {life} of seed {}: {what}\nafter\n{story}", self.seed));
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("whole").clone()
    }

    /// Ends server processes behind pgherd, one here and there and now and then all of them.
    pub(super) async fn kill(&self) {
        let mut random = StdRng::seed_from_u64(self.seed ^ 0x6b69_6c6c);
        let client = self.behind.client().await;
        while !self.is_over() {
            tokio::time::sleep(Duration::from_millis(random.random_range(50..900))).await;
            let limit = if random.random_ratio(1, 12) { "" } else { "order by random() limit 1" };
            let killed = client
                .query_one(
                    &format!(
                        "select count(*) filter (where pg_terminate_backend(pid)) from (select pid from pg_stat_activity
                         where datname = current_database() and pid <> pg_backend_pid() {limit}) victims"
                    ),
                    &[],
                )
                .await
                .expect("killed");
            for _ in 0..killed.get::<_, i64>(0) {
                self.figures.kills.more();
            }
        }
    }
}
