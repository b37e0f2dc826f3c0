//! Real drivers tell one story (tests/drivers/README.md): to PostgreSQL itself, and through pgherd with cache and fan-out off and on.

mod protocol;
mod tokio_postgres_story;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::harness::{Database, Pgherd, certificates, fresh_database, fresh_databases, fresh_role};

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

/// A [`Scene`] through pgherd, which lives as long as this.
struct Through {
    scene: Scene,
    _pgherd: Pgherd,
}

impl Through {
    /// One database; nothing is cached, nothing is spread.
    async fn pgherd() -> Self {
        let (database, user) = (fresh_database().await, fresh_role("scram").await);
        database.execute(&format!("{ITEMS} {EVENTS} {FILL}")).await;
        grant(&database, &user).await;
        let toml = format!("[[database]]\nname = \"story\"\nprimary = \"{}\"\n", database.address());
        Self::start(&toml, user).await
    }

    /// Results are cached, and `story_events` is spread over two shards.
    async fn pgherd_with_cache_and_fanout() -> Self {
        let user = fresh_role("scram").await;
        let (database, shards) = (fresh_database().await, fresh_databases(2).await);
        database.execute(ITEMS).await;
        grant(&database, &user).await;
        for (shard, server) in shards.iter().enumerate() {
            let here = format!("satisfies_hash_partition('layout'::regclass, 2, {shard}, customer_id)");
            let layout = "create table layout (customer_id int) partition by hash (customer_id);";
            server
                .execute(&format!(
                    "{EVENTS} {FILL} {layout} delete from story_events where not {here}; drop table layout"
                ))
                .await;
            grant(server, &user).await;
        }
        let toml = format!(
            "[cache]\nenabled = true\n\n[[database]]\nname = \"story\"\nprimary = \"{}\"\nshards = [\"{}\", \"{}\"]\n\n\
             [[database.table]]\nname = \"public.story_events\"\nshard_key = \"customer_id\"\nmethod = \"hash\"\n",
            database.address(),
            shards[0].address(),
            shards[1].address()
        );
        Self::start(&toml, user).await
    }

    async fn start(toml: &str, user: String) -> Self {
        let (ca, cert, key) = certificates().paths();
        let toml = format!(
            "{toml}\n[[user]]\nname = \"{user}\"\nauth = \"scram\"\npassword = \"secret\"\n\n\
             [listen]\naddress = \"127.0.0.1:0\"\ntls = {{ mode = \"prefer\", cert = \"{}\", key = \"{}\" }}\n",
            cert.display(),
            key.display()
        );
        let pgherd = Pgherd::start(&toml).await;
        Self { scene: Scene { port: pgherd.port, user, database: "story".to_owned(), ca }, _pgherd: pgherd }
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
    // Into a file, so that what was said is known even when the story hangs.
    let said = crate::harness::certificates::write("story", "");
    let file = std::fs::File::create(&said).expect("file");
    command.stdout(file.try_clone().expect("file")).stderr(file);
    let mut child = command.spawn().expect("the driver's program starts");
    let status = tokio::time::timeout(Duration::from_secs(120), child.wait()).await;
    let said = std::fs::read_to_string(said).expect("said");
    let Ok(status) = status else { panic!("the story hangs after:\n{said}") };
    assert!(status.expect("ended").success(), "{said}");
    assert!(said.contains(" 10: "), "the story broke off:\n{said}");
}

macro_rules! stories {
    ($($driver:ident)*) => {
        $(mod $driver {
            use super::{Scene, Through, tell};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgresql() {
                tell(super::$driver(), &Scene::postgresql().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn through_pgherd() {
                tell(super::$driver(), &Through::pgherd().await.scene).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn through_pgherd_with_cache_and_fanout() {
                tell(super::$driver(), &Through::pgherd_with_cache_and_fanout().await.scene).await;
            }
        })*
    };
}

stories!(psycopg asyncpg node jdbc);

mod tokio_postgres {
    use super::tokio_postgres_story::tell;
    use super::{Scene, Through};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn on_postgresql() {
        tell(&Scene::postgresql().await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn through_pgherd() {
        tell(&Through::pgherd().await.scene).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn through_pgherd_with_cache_and_fanout() {
        tell(&Through::pgherd_with_cache_and_fanout().await.scene).await;
    }
}
