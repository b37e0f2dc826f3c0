use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use tokio::time::timeout;

use super::*;
use crate::config::{keys, load};

const DEADLINE: Duration = Duration::from_secs(10);

fn text(ttl: &str) -> String {
    format!(
        "[pool]\nmin_connections = 0\n[[database]]\nname = \"app\"\nprimary = \"host=x\"\n[[user]]\nname = \"a\"\nauth = \"trust\"\n\
         [cache]\nttl = \"{ttl}\"\n"
    )
}

struct Watched {
    config: watch::Receiver<Arc<Config>>,
    stop: CancellationToken,
    good: Arc<AtomicUsize>,
    bad: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

/// Starts to watch a file that is there already.
fn start(path: &Path) -> Watched {
    let first = Arc::new(load(path).expect("a good file"));
    let (reload, config) = Reload::new(path, first);
    let stop = CancellationToken::new();
    let (good, bad) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (good.clone(), bad.clone());
    let report = move |is_good: bool| {
        if is_good { &counts.0 } else { &counts.1 }.fetch_add(1, SeqCst);
    };
    let task = tokio::spawn(reload.run(stop.clone(), report));
    Watched { config, stop, good, bad, task }
}

impl Watched {
    async fn until_ttl(&mut self, seconds: u64) {
        let arrived = self.config.wait_for(|config| config.cache.ttl == Duration::from_secs(seconds));
        timeout(DEADLINE, arrived).await.expect("in time").expect("a sender");
    }

    async fn until_bad(&self, count: usize) {
        let reached = async {
            while self.bad.load(SeqCst) < count {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, reached).await.expect("in time");
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(DEADLINE, self.task).await.expect("in time").expect("no panic");
    }
}

#[tokio::test]
async fn a_changed_file_is_taken_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    fs::write(&path, text("1s")).expect("a file");
    let mut watched = start(&path);

    fs::write(&path, text("2s")).expect("a file");
    watched.until_ttl(2).await;

    fs::write(&path, text("nonsense")).expect("a file");
    watched.until_bad(1).await;
    assert_eq!(watched.config.borrow().cache.ttl, Duration::from_secs(2));

    fs::write(&path, text("3s")).expect("a file");
    watched.until_ttl(3).await;
    watched.end().await;
}

#[tokio::test]
async fn an_editor_that_renames_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    fs::write(&path, text("1s")).expect("a file");
    let mut watched = start(&path);
    for seconds in 2..5 {
        let draft = folder.path().join("proxy.toml~");
        fs::write(&draft, text(&format!("{seconds}s"))).expect("a file");
        fs::rename(&draft, &path).expect("a rename");
        watched.until_ttl(seconds).await;
    }
    watched.end().await;
}

#[tokio::test]
async fn a_config_map_that_swaps_its_link_is_noticed() {
    // As the kubelet lays it out: proxy.toml -> ..data/proxy.toml, ..data -> a dated folder, swapped by a rename.
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    for (dated, ttl) in [("..1", "1s"), ("..2", "2s")] {
        fs::create_dir(at(dated)).expect("a folder");
        fs::write(at(dated).join("proxy.toml"), text(ttl)).expect("a file");
    }
    symlink("..1", at("..data")).expect("a link");
    symlink("..data/proxy.toml", at("proxy.toml")).expect("a link");
    let mut watched = start(&at("proxy.toml"));

    symlink("..2", at("..data_tmp")).expect("a link");
    fs::rename(at("..data_tmp"), at("..data")).expect("a rename");
    watched.until_ttl(2).await;
    watched.end().await;
}

#[tokio::test]
async fn other_files_in_the_folder_reload_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    fs::write(&path, text("1s")).expect("a file");
    let mut watched = start(&path);
    fs::write(folder.path().join("other.log"), "x").expect("a file");
    fs::write(&path, text("2s")).expect("a file");
    watched.until_ttl(2).await;
    assert_eq!(watched.good.load(SeqCst), 1);
    watched.end().await;
}

#[test]
fn what_needs_a_restart_is_what_the_list_of_keys_says() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("proxy.toml");
    fs::write(&path, text("1s")).expect("a file");
    let before = load(&path).expect("a good file");
    let changed = format!(
        "threads = 3\n{}max_connections = 4\n[cache]\nttl = \"9s\"\nenabled = true\nmemory = \"1GiB\"\nmax_entry = \"1MiB\"\n\
         consistency = \"bounded\"\nolap_only = false\nmin_cost = \"1s\"\nin_transactions = \"never\"\n\
         audit_one_in = 7\nstale_on_error = true\nshare_roles = true\nshards = true\nstatements = {{ 00112233445566778899aabbccddeeff = \"pin\" }}\non_redis_loss = \"wait\"\ntables = {{ t = \"1s\" }}\n\
         redis = {{ url = \"rediss://x\", prefix = \"p\", lease = \"20s\", ca = \"ca.crt\", compress_above = \"1KiB\", max_entry = \"1MiB\", replicas = 1 }}\nwal = {{ publication = \"w\", max_lag = \"2s\" }}\n\
         [fanout]\nmax_parallel = 1\nmemory = \"1MiB\"\npure_functions = [\"public.f()\"]\nquery_timeout = \"1s\"\nmax_shipped_rows = 9\nmax_shipped_bytes = \"1MiB\"\nkey_list_max = 7\nkey_moves = \"move\"\n\
         [listen]\nshutdown_timeout = \"1s\"\ndrain_delay = \"1s\"\nhandover = \"h\"\naddress = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:2\"\nunix_socket_dir = \"/tmp\"\n\
         [telemetry]\nformat = \"json\"\n",
        text("1s").split("[cache]").next().expect("what comes before")
    );
    fs::write(&path, changed).expect("a file");
    let after = load(&path).expect("a good file");
    let mut found = needs_restart(&before, &after);
    let mut listed: Vec<String> = Vec::new();
    for section in keys::sections() {
        for key in section.keys.iter().filter(|key| key.applies == keys::Applies::Restart) {
            if !matches!(key.kind, keys::Kind::Table(_)) {
                listed.push(format!("{}.{}", section.path, key.name).trim_start_matches('.').to_string());
            }
        }
    }
    found.sort_unstable();
    listed.sort_unstable();
    assert_eq!(found, listed);
    assert!(needs_restart(&after, &after).is_empty());
}
