//! Calibration: the same checker, pointed at another proxy's cache, sees what is wrong there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use pgherd::commands::demo::servers::{PostgresServer, Supervisor};

use super::load::{Load, Scene};
use super::run::{end, stage, summary};
use super::seat::Line;
use crate::harness::serving::free_port;
use crate::harness::{eventually, ground};

/// How long it is looked at.
const TIME: Duration = Duration::from_secs(30);

/// pgpool-II with its cache in shared memory, in front of that server.
struct Pgpool {
    port: u16,
    _supervisor: Supervisor,
}

impl Pgpool {
    /// `None` where it is not installed.
    async fn start(postgres: &PostgresServer) -> Option<Self> {
        let program =
            ["/usr/sbin/pgpool", "/usr/bin/pgpool"].map(PathBuf::from).into_iter().find(|path| path.exists())?;
        let (folder, port) = (ground().server_folder("pgpool").expect("a folder"), free_port());
        let (file, hba) = (folder.join("pgpool.conf"), folder.join("pool_hba.conf"));
        ground().write(&file, &configuration(&folder, port, postgres.port())).expect("written");
        ground().write(&hba, "host all all 127.0.0.1/32 trust\n").expect("written");
        let (program, file, hba) = (program.to_string_lossy(), file.to_string_lossy(), hba.to_string_lossy());
        let command = [&*program, "-n", "-f", &*file, "-a", &*hba];
        let mut supervisor = Supervisor::new(ground(), &folder, &command, "INT").expect("a supervisor");
        let is_there = |_| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        supervisor.start(is_there).unwrap_or_else(|error| panic!("{error}"));
        Some(Self { port, _supervisor: supervisor })
    }
}

fn configuration(folder: &Path, port: u16, postgres: u16) -> String {
    let (folder, pcp) = (folder.display(), free_port());
    format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\npcp_listen_addresses = '127.0.0.1'\npcp_port = {pcp}\n\
         socket_dir = '{folder}'\npcp_socket_dir = '{folder}'\nwd_ipc_socket_dir = '{folder}'\n\
         logdir = '{folder}'\nwork_dir = '{folder}'\npid_file_name = '{folder}/pgpool.pid'\n\
         backend_clustering_mode = 'raw'\nbackend_hostname0 = '127.0.0.1'\nbackend_port0 = {postgres}\n\
         num_init_children = 80\nmax_pool = 3\nload_balance_mode = off\nsr_check_period = 0\nhealth_check_period = 0\n\
         enable_pool_hba = off\npool_passwd = ''\nlog_min_messages = fatal\n\
         memory_cache_enabled = on\nmemqcache_method = 'shmem'\nmemqcache_oiddir = '{folder}/oiddir'\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half a minute on another program; by hand"]
async fn pgpools_cache_shows_old_rows() {
    let (postgres, world) = stage().await;
    let Some(pgpool) = Pgpool::start(&postgres).await else {
        eprintln!("NOT TESTED: pgpool-II is not installed");
        return;
    };
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={}", pgpool.port, world.database.name);
    eventually(Duration::from_secs(20), "pgpool answers", || async { Line::open(&conninfo).await.is_some() }).await;
    let scene = Scene::new(world, vec![pgpool.port], None);
    let tasks = scene.populate(Load::USUAL);
    tokio::time::sleep(TIME).await;
    scene.stop.store(true, Ordering::SeqCst);
    let time = scene.start.elapsed();
    end(tasks).await;
    let summary = summary(&scene, time);
    let mut kinds: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (_, violation) in &summary.violations {
        let kind = violation.split(' ').next().unwrap_or_default();
        kinds.entry(kind).or_insert((0, violation)).0 += 1;
    }
    eprintln!("pgpool-II: {summary}");
    for (kind, (count, first)) in &kinds {
        eprintln!("  {kind}: {count} (of the first thousand violations), as {first}");
    }
    assert!(kinds.contains_key("STALE"), "old rows: {summary}");
}
