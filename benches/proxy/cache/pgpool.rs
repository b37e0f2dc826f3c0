//! pgpool-II with its query cache in shared memory.

use std::fmt::Write as _;
use std::fs;

use pgherd::commands::demo::servers::{ServerError, free_port};

use crate::targets::{Entrance, Running, Yard, installed};

/// Its processes, each of which serves one client at a time.
const CHILDREN: u32 = 32;

/// Starts it, or says that it is left out.
pub(super) fn start(yard: &Yard<'_>) -> Result<Option<Running>, ServerError> {
    let Some(program) = installed("pgpool") else {
        eprintln!("pgpool-II is not installed (apt-get install pgpool2): it is left out");
        return Ok(None);
    };
    let (folder, port, control) = (yard.ground.server_folder("pgpool")?, free_port()?, free_port()?);
    let here = folder.display();
    // Debian links it with a folder for its marks of what was cached; it must be there.
    let marks = folder.join("oiddir");
    let mut text = format!("memqcache_oiddir = '{}'\n", marks.display());
    let settings = [
        ("backend_clustering_mode", "raw".to_owned()),
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", port.to_string()),
        ("socket_dir", here.to_string()),
        ("pcp_port", control.to_string()),
        ("pcp_socket_dir", here.to_string()),
        ("pid_file_name", folder.join("pgpool.pid").display().to_string()),
        ("logdir", here.to_string()),
        ("backend_hostname0", "127.0.0.1".to_owned()),
        ("backend_port0", yard.server.port().to_string()),
        ("backend_weight0", "1".to_owned()),
        ("enable_pool_hba", "off".to_owned()),
        ("use_watchdog", "off".to_owned()),
        ("health_check_period", "0".to_owned()),
        ("sr_check_period", "0".to_owned()),
        ("num_init_children", CHILDREN.to_string()),
        ("max_pool", "1".to_owned()),
        ("log_min_messages", "error".to_owned()),
        ("memory_cache_enabled", "on".to_owned()),
        ("memqcache_method", "shmem".to_owned()),
        ("memqcache_total_size", "64MB".to_owned()),
        ("memqcache_expire", "0".to_owned()),
        ("memqcache_auto_cache_invalidation", "on".to_owned()),
    ];
    for (name, value) in settings {
        let _ = writeln!(text, "{name} = '{value}'");
    }
    let config = folder.join("pgpool.conf");
    yard.ground.write(&config, &text)?;
    for name in ["pcp.conf", "pool_hba.conf"] {
        yard.ground.write(&folder.join(name), "")?;
    }
    let mut make = yard.ground.command("/bin/mkdir");
    pgherd::commands::demo::servers::Ground::run(make.arg(&marks))?;
    let (config, control) = (config.to_string_lossy(), folder.join("pcp.conf"));
    let command = [&*program.to_string_lossy(), "-n", "-f", &*config, "-F", &*control.to_string_lossy()];
    let started = yard.run(&folder, &command, port, Entrance::default());
    started.map(Some).inspect_err(|_| {
        let _ = fs::read_to_string(folder.join("log")).map(|log| eprintln!("{log}"));
    })
}
