//! The same bytes go to PostgreSQL and through pgherd; the traces are equal, or differ as a reviewed patch says. The transcripts
//! lie in `tests/transcripts`, which also tells their format.

mod dice;
mod patch;
mod play;
mod script;
mod spread;
mod step;

use std::collections::BTreeSet;

use play::{Before, play};
use script::Script;

use crate::harness::{Database, fresh_database};
use crate::relay::proxy::Proxy;
use spread::Spread;

/// What every transcript finds.
const SETUP: &str = include_str!("../../transcripts/setup.sql");
/// A cache that keeps every read that it can.
const CACHE: &str = "[cache]\nenabled = true\nolap_only = false\n";
/// Every message that PostgreSQL sends outside authentication by a secret and replication.
const BACKEND_MESSAGES: &[u8] = b"RKZSTDCIENA123ntsGHcdVv";

/// Where transcripts are played straight, and which.
struct Modes {
    straight: Database,
    scripts: Vec<Script>,
    server: u32,
}

impl Modes {
    async fn over(straight: Database) -> Self {
        let row = straight.client().await.query_one("show server_version_num", &[]).await.expect("a version");
        let server = row.get::<_, String>(0).parse::<u32>().expect("a number") / 10_000;
        Self { straight, scripts: script::all(), server }
    }

    /// Plays all of them in one mode, twice: the second time statements are prepared, answers are cached, and servers have been
    /// used by others. Returns what differs from what is known, and notes the messages that were seen.
    async fn play(&self, mode: &str, through: Before<'_>, seen: &mut BTreeSet<u8>) -> Vec<String> {
        let mut faults = Vec::new();
        let straight = Before { port: self.straight.port, database: &self.straight };
        for script in self.scripts.iter().filter(|script| script.scope.holds(mode, self.server)) {
            for round in ["cold", "warm"] {
                let patches = patch::known(&script.path);
                let known = patch::wanted(&patches, mode, self.server);
                let mut found = self.found(straight, through, script, seen).await;
                if found != known && !is_strict() {
                    // Beside all other tests a timeout of the machine's may tell what PostgreSQL would not: it must tell it twice.
                    eprintln!("{} ({mode}, {round}) differed once:\n{}\n", script.name, found.join("\n"));
                    found = self.found(straight, through, script, seen).await;
                }
                if found != known {
                    faults.push(format!("{} ({mode}, {round}):\n{}\n", script.name, found.join("\n")));
                }
            }
        }
        faults
    }

    /// Plays one on both sides, and returns what differs.
    async fn found(
        &self,
        straight: Before<'_>,
        through: Before<'_>,
        script: &script::Script,
        seen: &mut BTreeSet<u8>,
    ) -> Vec<String> {
        let (wanted, tags) = play(straight, &script.steps).await;
        let (got, _) = play(through, &script.steps).await;
        seen.extend(tags);
        let got = got.into_iter().map(|line| line.replace(&through.database.name, &self.straight.name)).collect();
        patch::difference(&wanted, &got)
    }
}

/// Whether a difference counts that does not come again: in runs by hand, on a machine that does nothing else.
fn is_strict() -> bool {
    std::env::var_os("PGHERD_SOAK").is_some()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_get_the_same_answers() {
    let (straight, behind) = (fresh_database().await, fresh_database().await);
    straight.execute(SETUP).await;
    behind.execute(SETUP).await;
    let modes = Modes::over(straight).await;
    let all = std::env::var_os("PGHERD_TEST_TRANSCRIPTS").is_none();
    assert!(!modes.scripts.is_empty(), "no transcript has that name");
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for (mode, pool, more) in
        [("transaction", "transaction", ""), ("session", "session", ""), ("cache", "transaction", CACHE)]
    {
        let pool = format!("max_connections = 4, mode = \"{pool}\"");
        let proxy = Proxy::with(behind.clone(), &behind.address(), &pool, more).await;
        if !more.is_empty() {
            proxy.caches("select count(*) from t").await;
        }
        faults.extend(modes.play(mode, Before { port: proxy.port, database: &behind }, &mut seen).await);
        if faults.is_empty() {
            proxy.examine().await;
        }
        proxy.stop().await;
    }
    assert!(faults.is_empty(), "{} differ\n\n{}", faults.len(), faults.join("\n"));
    assert!(!all || modes.scripts.len() >= 60, "{} transcripts", modes.scripts.len());
    let missing: Vec<char> = BACKEND_MESSAGES.iter().filter(|tag| !seen.contains(tag)).map(|&tag| tag.into()).collect();
    assert!(!all || missing.is_empty(), "no transcript shows {missing:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_get_the_same_answers_over_shards() {
    let spread = Spread::start("").await;
    let modes = Modes::over(spread.straight.clone()).await;
    let behind = spread.behind();
    let faults = modes.play("shards", Before { port: behind.port, database: &behind }, &mut BTreeSet::new()).await;
    assert!(faults.is_empty(), "{} differ\n\n{}", faults.len(), faults.join("\n"));
}
