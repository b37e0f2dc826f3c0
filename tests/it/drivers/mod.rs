//! Real drivers tell one story (tests/drivers/README.md): to PostgreSQL itself, and through pgherd with cache and fan-out off and on.

mod tokio_postgres_story;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::harness::{Database, certificates, fresh_database, fresh_role};

/// Where a story is told.
pub(super) struct Scene {
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) database: String,
    /// The authority's certificate, PEM.
    pub(super) ca: PathBuf,
}

/// The tables of the story, as they stand before it begins. `story_events` is the one that may be spread.
const EVENTS: &str =
    "create table story_events (customer_id int primary key, region int not null, amount int not null);";
const ITEMS: &str =
    "create table story_items (id int primary key, name text, price numeric(10,2), at timestamptz, data bytea);";
const FILL: &str = "insert into story_events select c, c % 4, c * 10 from generate_series(1, 40) c;";

impl Scene {
    /// PostgreSQL itself: what fails here is the story's own fault.
    async fn postgresql() -> Self {
        let (database, user) = (fresh_database().await, fresh_role("scram").await);
        database.execute(&format!("{ITEMS} {EVENTS} {FILL}")).await;
        grant(&database, &user).await;
        Self { port: database.port, user, database: database.name, ca: certificates().paths().0 }
    }
}

async fn grant(database: &Database, user: &str) {
    database.execute(&format!("grant all on all tables in schema public to {user}")).await;
}

/// The folder that `tests/drivers/install` fills.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target folder").join("drivers")
}

fn psycopg() -> Option<Command> {
    python("psycopg_story.py")
}

fn asyncpg() -> Option<Command> {
    python("asyncpg_story.py")
}

fn python(story: &str) -> Option<Command> {
    let python = installed().join("venv/bin/python");
    let mut command = Command::new(&python);
    command.arg(Path::new("tests/drivers").join(story));
    python.exists().then_some(command)
}

fn node() -> Option<Command> {
    let packages = installed().join("node_modules");
    let mut command = Command::new("node");
    command.arg("tests/drivers/node_story.js").env("NODE_PATH", &packages);
    packages.join("pg").exists().then_some(command)
}

fn jdbc() -> Option<Command> {
    let (classes, driver) = (installed().join("jdbc"), Path::new("/usr/share/java/postgresql.jar"));
    let mut command = Command::new("java");
    command.arg("-cp").arg(format!("{}:{}", classes.display(), driver.display())).arg("Story");
    (driver.exists() && classes.join("Story.class").exists()).then_some(command)
}

/// Runs a story to its end; a step that fails is shown with everything the program said.
async fn tell(driver: Option<Command>, scene: &Scene) {
    let Some(mut command) = driver else {
        let what = "this driver is not installed; run: tests/drivers/install";
        assert!(std::env::var_os("CI").is_none(), "{what}");
        eprintln!("NOT TESTED: {what}");
        return;
    };
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).kill_on_drop(true);
    command.env("PGHOST", "127.0.0.1").env("PGPORT", scene.port.to_string()).env("PGUSER", &scene.user);
    command.env("PGPASSWORD", "secret").env("PGDATABASE", &scene.database).env("PGSSLROOTCERT", &scene.ca);
    let output = tokio::time::timeout(Duration::from_secs(120), command.output()).await;
    let output = output.expect("the story ends within two minutes").expect("the driver's program starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "after these steps:\n{out}\nit said:\n{err}");
    assert!(out.contains(" 10: "), "the story broke off:\n{out}\n{err}");
}

macro_rules! stories {
    ($($driver:ident)*) => {
        $(mod $driver {
            use super::Scene;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgresql() {
                super::tell(super::$driver(), &Scene::postgresql().await).await;
            }
        })*
    };
}

stories!(psycopg asyncpg node jdbc);

mod tokio_postgres {
    use super::Scene;
    use super::tokio_postgres_story::tell;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn on_postgresql() {
        tell(&Scene::postgresql().await).await;
    }
}
