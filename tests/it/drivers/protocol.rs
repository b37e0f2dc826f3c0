//! Protocol 3.2 as libpq 18 speaks it, which psycopg's binary package brings along.

use std::process::Stdio;

use crate::harness::{Pgherd, fresh_database};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libpq_18_speaks_3_2_and_cancels_with_its_longer_secret() {
    let Some(mut command) = super::python("protocol_story.py") else {
        assert!(std::env::var_os("CI").is_none(), "psycopg is not installed; run: tests/drivers/install");
        return;
    };
    let database = fresh_database().await;
    let pgherd = Pgherd::over(&database, "").await;
    command.arg(pgherd.conninfo("postgres", &database.name)).arg("30002");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).kill_on_drop(true);
    let told = command.output().await.expect("the driver's program starts");
    let said = [told.stdout, told.stderr].concat();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&said));
    pgherd.stop().await;
}
