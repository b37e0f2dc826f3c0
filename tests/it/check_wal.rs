//! `pgherd check` tries what `cache.wal` needs of the primary, and names each thing that is missing.

use pgherd::commands::check::{Level, Report};

use crate::check::{assert_fault, found, run};
use crate::harness::{self, Database};

const PLACE: &str = "cache.wal";

async fn check_as(database: &Database, role: &str) -> Report {
    let address = database.address();
    run(&format!(
        "[pool]\nmax_connections = 5\nmin_connections = 0\n[[user]]\nname = \"{role}\"\nauth = \"trust\"\n\
         [[database]]\nname = \"app\"\nprimary = \"{address}\"\n[cache]\nenabled = true\nwal = {{ max_lag = \"1s\" }}\n"
    ))
    .await
}

#[tokio::test]
async fn a_primary_that_can_be_followed_passes_and_keeps_nothing() {
    let server = harness::start(&harness::options().set("wal_level", "logical"));
    let database = harness::database_on(&server).await;
    database.execute("create publication pgherd for all tables; create table plain (id int primary key)").await;
    let report = check_as(&database, "postgres").await;
    assert_eq!(report.count(Level::Fault), 0, "{report}");
    assert!(found(&report, Level::Ok, PLACE, "can be followed, as postgres"), "{report}");
    let left = database.client().await;
    harness::eventually(std::time::Duration::from_secs(20), "no slot is left", async || {
        let row = left.query_one("select count(*) from pg_replication_slots", &[]).await.expect("read");
        row.get::<_, i64>(0) == 0
    })
    .await;
}

#[tokio::test]
async fn each_thing_that_is_missing_is_named_with_what_to_do() {
    let options = harness::options().set("wal_level", "replica").set("max_replication_slots", "1");
    let server = harness::start(&options);
    let database = harness::database_on(&server).await;
    database
        .execute("create role plain_reader login; select pg_create_physical_replication_slot('somebody', true)")
        .await;
    let report = check_as(&database, "plain_reader").await;
    assert_fault(&report, PLACE, "wal_level is replica");
    assert_fault(&report, PLACE, "all 1 replication slots are taken");
    assert_fault(&report, PLACE, "there is no publication \"pgherd\"");
    assert_fault(&report, PLACE, "no role that pgherd logs in as may replicate (plain_reader)");
    assert!(!found(&report, Level::Ok, PLACE, "followed"), "{report}");
    database.execute("create publication pgherd for all tables with (publish = 'insert, update')").await;
    assert_fault(&check_as(&database, "plain_reader").await, PLACE, "does not publish all of INSERT, UPDATE");
}

#[tokio::test]
async fn tables_that_are_not_told_of_or_cannot_be_written_are_named() {
    let server = harness::start(&harness::options().set("wal_level", "logical"));
    let database = harness::database_on(&server).await;
    database
        .execute(
            "create table told (id int primary key); create table bare (id int); create table untold (id int);
             create table parts (id int primary key) partition by range (id);
             create table part_1 partition of parts for values from (0) to (9);
             create publication pgherd for table told, bare, parts",
        )
        .await;
    let report = check_as(&database, "postgres").await;
    assert_eq!(report.count(Level::Fault), 0, "{report}");
    assert!(found(&report, Level::Warning, PLACE, "public.bare have no replica identity"), "{report}");
    assert!(found(&report, Level::Warning, PLACE, "public.untold are not in the publication"), "{report}");
    assert!(found(&report, Level::Ok, PLACE, "can be followed"), "{report}");
}

#[tokio::test]
async fn without_it_or_without_a_cache_nothing_is_tried() {
    let database = harness::fresh_database().await;
    let address = database.address();
    for (cache, own) in [
        ("[cache]\nenabled = true\n", ""),
        ("[cache]\nwal = {}\n", ""),
        ("[cache]\nenabled = true\nwal = {}\n", "cache = false\n"),
    ] {
        let report = run(&format!(
            "[pool]\nmin_connections = 0\n[[user]]\nname = \"postgres\"\nauth = \"trust\"\n\
             [[database]]\nname = \"app\"\nprimary = \"{address}\"\n{own}{cache}"
        ))
        .await;
        assert!(!report.findings.iter().any(|finding| finding.place.contains(PLACE)), "{report}");
    }
}
