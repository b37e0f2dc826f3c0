//! Large parameters where there are shards: a key may be among them, so they are looked at before they go on.

use super::stage::{Stage, ok};

#[tokio::test]
async fn large_values_reach_the_primary_and_the_shards() {
    let stage = Stage::set(2).await;
    let pgherd = stage.pgherd().await;
    let accounts = stage.one_of_each().await;
    let client = pgherd.client("app").await;
    for bytes in [300_000, 3_000_000] {
        let note = "x".repeat(bytes);
        let length = i32::try_from(bytes).expect("small");
        client.execute("insert into local_notes values ($1, $2)", &[&length, &note]).await.expect("on the primary");
        let row = client.query_one("select length(note) from local_notes where id = $1", &[&length]).await;
        assert_eq!(row.expect("read").get::<_, i32>(0), length);
        for account in &accounts {
            let insert = "insert into entries (account_id, id, amount, note) values ($1, 1, 1, $2)";
            client.execute(insert, &[account, &note]).await.expect("on its shard");
            let row = client.query_one("select max(length(note)) from entries where account_id = $1", &[account]).await;
            assert_eq!(row.expect("read").get::<_, i32>(0), length, "{account}");
        }
    }
    let note = "x".repeat(17 << 20);
    let refused = client.execute("insert into local_notes values (0, $1)", &[&note]).await.expect_err("too large");
    let refused = refused.as_db_error().expect("told");
    assert_eq!((refused.code().code(), refused.message().contains("16777216 bytes")), ("54000", true), "{refused}");
    assert_eq!(ok(&mut pgherd.wire("app").await, "select 1").await, "SELECT 1", "nobody else has lost anything");
    let row = client.query_one("select count(*) from local_notes", &[]).await.expect("the session lives on");
    assert_eq!(row.get::<_, i64>(0), 2);
}
