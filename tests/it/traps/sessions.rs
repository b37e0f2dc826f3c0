//! Settings of the session hold on every leg, and definitions that differ between shards are noticed.

use super::herd::Herd;
use crate::answers::Manner;
use crate::answers::{Answer, MANNERS, ask, ask_with};

#[tokio::test]
async fn every_leg_has_the_sessions_settings() {
    let herd = Herd::start(4, true).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let mut neighbour = herd.client().await;
    let reads = [
        "select id, day, at, made, span, price, raw from sales order by at, id limit 50",
        "select min(day), max(made), min(at) from sales where at > '-infinity'",
        "select id from sales where day = '02/01/2024' order by id",
        "select at::text, day::text, price::text from sales order by id limit 30",
        "select day, count(*) from sales group by day order by day",
    ];
    for set in [
        "set datestyle to 'SQL, DMY'",
        "set timezone to 'Asia/Tokyo'",
        "set datestyle to 'German'",
        "set intervalstyle to 'iso_8601'",
        "set extra_float_digits to -10",
        "set bytea_output to 'escape'",
        "set standard_conforming_strings to off",
    ] {
        for session in [&mut oracle, &mut client] {
            assert_eq!(Answer::read(&session.query(set).await).tag, "SET", "{set}");
        }
        for read in reads {
            for manner in MANNERS {
                let wanted = ask(&mut oracle, manner, read).await;
                let given = ask(&mut client, manner, read).await;
                if given.code() != Some("0A000") {
                    assert_eq!(given, wanted, "{set}; {read} {manner:?}");
                }
            }
        }
    }
    // Nothing of it reaches another client, whose legs are the same server connections.
    let (mut fresh, read) = (herd.oracle().await, reads[0]);
    assert_eq!(ask(&mut neighbour, Manner::Simple, read).await, ask(&mut fresh, Manner::Simple, read).await);
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn what_equals_null_hangs_on_a_setting() {
    let herd = Herd::start(4, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for set in ["set transform_null_equals to on", "set transform_null_equals to off"] {
        for session in [&mut oracle, &mut client] {
            assert_eq!(Answer::read(&session.query(set).await).tag, "SET", "{set}");
        }
        for read in [
            "select count(*) from sales where customer_id = null",
            "select count(*) from sales where (null) = (customer_id)",
            "select count(*) from sales where customer_id = null::int4",
            "select count(*) from sales where customer_id in (null)",
            "select count(distinct region) from sales where customer_id = null or customer_id = 3",
        ] {
            for manner in MANNERS {
                let wanted = ask(&mut oracle, manner, read).await;
                assert_eq!(ask(&mut client, manner, read).await, wanted, "{set}; {read} {manner:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_search_path_decides_which_table_is_meant() {
    let herd = Herd::start(2, false).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    for session in [&mut oracle, &mut client] {
        session.query("set search_path to pg_catalog").await;
    }
    let text = "select count(*) from sales";
    assert_eq!(ask(&mut oracle, Manner::Simple, text).await.code(), Some("42P01"));
    let given = ask(&mut client, Manner::Simple, text).await;
    assert!(matches!(given.code(), Some("42P01" | "0A000")), "{given:?}");
    let text = "select count(*) from public.sales";
    assert_eq!(ask(&mut client, Manner::Binary, text).await, ask(&mut oracle, Manner::Binary, text).await);
}

#[tokio::test]
async fn shards_that_differ_after_half_a_migration_are_not_merged() {
    let herd = Herd::start(2, false).await;
    let mut client = herd.client().await;
    let text = "select sale_id, n from lines order by sale_id";
    let before = ask(&mut client, Manner::Prepared, text).await;
    assert_eq!(
        (before.error.as_ref(), before.rows.len()),
        (None, ask(&mut herd.oracle().await, Manner::Simple, text).await.rows.len())
    );
    herd.shards[1].execute("alter table lines alter column n type int8").await;
    for manner in MANNERS {
        let given = ask(&mut client, manner, text).await;
        assert_eq!((given.code(), given.rows.len(), given.status), (Some("0A000"), 0, 'I'), "{manner:?}: {given:?}");
    }
    herd.shards[0].execute("alter table lines alter column n type int8").await;
    herd.whole.execute("alter table lines alter column n type int8").await;
    let mut oracle = herd.oracle().await;
    for manner in MANNERS {
        let wanted = ask(&mut oracle, manner, text).await;
        let mut given = ask(&mut client, manner, text).await;
        if given.error.as_ref().is_some_and(|(_, message)| message == "cached plan must not change result type") {
            // PostgreSQL's own words for a statement prepared before; it is then forgotten.
            given = ask(&mut client, manner, text).await;
        }
        assert_eq!(given, wanted, "{manner:?}");
    }
    herd.comes_to_rest().await;
}

#[tokio::test]
async fn writes_of_one_shard_are_read_by_all() {
    let herd = Herd::start(4, true).await;
    let (mut oracle, mut client) = (herd.oracle().await, herd.client().await);
    let writes = [
        "insert into sales (id, customer_id, region, qty) values (2001, 3, 'New', 5)",
        "insert into sales (id, customer_id, region, qty) values (2002, 4, 'new', 6), (2003, 4, null, 7)",
        "update sales set qty = qty + 1 where customer_id = 4 returning id, qty",
        "delete from sales where customer_id = 5",
        "insert into lines values (9, 2004, 'x', 1) returning *",
    ];
    let reads = [
        "select region, count(*), sum(qty) from sales group by region order by region",
        "select id from sales where region in ('New', 'new') order by id",
        "select count(*), sum(n) from lines",
    ];
    for (turn, write) in writes.into_iter().enumerate() {
        let manner = MANNERS[turn % MANNERS.len()];
        let wanted = ask(&mut oracle, manner, write).await.sorted();
        assert_eq!(ask(&mut client, manner, write).await.sorted(), wanted, "{write}");
        for read in reads {
            for manner in MANNERS {
                let wanted = ask(&mut oracle, manner, read).await;
                assert_eq!(ask(&mut client, manner, read).await, wanted, "{write}; {read}");
            }
        }
    }
    let text = "insert into sales (id, customer_id, region) values ($1, $2, $3)";
    let values = [Some("2005"), Some("12"), Some("ß")];
    for session in [&mut oracle, &mut client] {
        assert_eq!(ask_with(session, Manner::Text, text, &values).await.tag, "INSERT 0 1");
    }
    let wanted = ask(&mut oracle, Manner::Text, reads[0]).await;
    assert_eq!(ask(&mut client, Manner::Text, reads[0]).await, wanted);
    herd.comes_to_rest().await;
}
