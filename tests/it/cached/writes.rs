//! The ways in which a version can be committed, and those in which it must not become visible.

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::chains::{Chain, Chains};
use super::world::{CHILD, KEPT, KEPT_VERSIONS, LEDGER, LOG, MIRROR, PART, SOUTH, SWAP};

/// Commits the next version of a chain in one way or another. `dice` picks which.
pub(super) async fn write(chains: &Chains, chain: &Chain, client: &Client, dice: u32) -> Result<(), Error> {
    let id = chain.id;
    if id < 300 {
        return item(chains, chain, client, dice).await;
    }
    if KEPT.contains(&id) && chain.latest() + 2 > KEPT_VERSIONS {
        // There is nothing left to delete.
        return Ok(());
    }
    let v = chain.next();
    let done = if LEDGER.contains(&id) {
        plain(client, "shop.ledger", id, v, dice).await
    } else if CHILD.contains(&id) {
        plain(client, "shop.parent", id, v, dice).await
    } else if KEPT.contains(&id) {
        let text = format!("delete from shop.old where chain = {id} and v <= {v}");
        client.batch_execute(&text).await
    } else if MIRROR.contains(&id) {
        plain(client, "shop.source", id, v, dice).await
    } else if PART.contains(&id) {
        let partition = if id == 602 { "shop.part_high" } else { "shop.part_low" };
        plain(client, if dice.is_multiple_of(2) { "shop.part" } else { partition }, id, v, dice / 2).await
    } else if SWAP.contains(&id) {
        swap(client, id, v, dice).await
    } else {
        assert!(LOG.contains(&id));
        copy(client, id, v).await
    };
    acknowledged(chains, chain, v, done)
}

fn acknowledged(chains: &Chains, chain: &Chain, v: i64, done: Result<(), Error>) -> Result<(), Error> {
    if done.is_ok() {
        chains.acknowledged(chain, v);
    }
    done
}

async fn plain(client: &Client, table: &str, id: i32, v: i64, dice: u32) -> Result<(), Error> {
    let text = format!("update {table} set v = {v} where chain = {id}");
    match dice % 3 {
        0 => client.batch_execute(&text).await,
        1 => client.execute(&format!("update {table} set v = $1 where chain = $2"), &[&v, &id]).await.map(drop),
        _ => client.batch_execute(&format!("begin; {text}; commit")).await,
    }
}

/// Empties the table and fills it again, in one transaction.
async fn swap(client: &Client, id: i32, v: i64, dice: u32) -> Result<(), Error> {
    let insert = format!("insert into shop.swap values ({id}, {v})");
    if dice.is_multiple_of(2) {
        return client.batch_execute(&format!("truncate shop.swap; {insert}")).await;
    }
    for text in ["begin", "truncate shop.swap", &insert, "commit"] {
        client.batch_execute(text).await?;
    }
    Ok(())
}

async fn copy(client: &Client, id: i32, v: i64) -> Result<(), Error> {
    let mut sink = pin!(client.copy_in("copy shop.log (chain, v) from stdin").await?);
    sink.send(Bytes::from(format!("{id}\t{v}\n"))).await?;
    sink.finish().await.map(drop)
}

/// Items can be written in all the ways that there are.
async fn item(chains: &Chains, chain: &Chain, client: &Client, dice: u32) -> Result<(), Error> {
    let table = if SOUTH.contains(&chain.id) { "south.item" } else { "north.item" };
    let is_north = table == "north.item";
    match dice % 24 {
        0..=2 => return never_committed(chains, chain, client, table, dice).await,
        3 | 4 => return pipelined(chains, chain, client, table).await,
        _ => {}
    }
    let (id, v) = (chain.id, chain.next());
    let set = format!("set v = {v}, at = to_timestamp({v})");
    let update = format!("update {table} {set} where chain = {id}");
    let batch = async |text: &str| client.batch_execute(text).await;
    let done = match dice % 24 {
        // Slow, so that others begin and end beside it.
        5..=8 | 22 | 23 => batch(&format!("{update} and (select count(*) from generate_series(1, 80000)) > 0")).await,
        9 | 10 => in_a_transaction(chains, client, table, id, v, &update).await,
        11 => batch(&format!("select 1; {update}; select 2")).await,
        12 => batch(&format!("with done as ({update} returning 1) select count(*) from done")).await,
        13 => {
            let insert = format!("insert into {table} values ({id}, {v}, '-', to_timestamp({v}))");
            batch(&format!("{insert} on conflict (chain) do update set v = excluded.v, at = excluded.at")).await
        }
        14 => {
            let using = format!("using (values ({id}, {v}::bigint)) as new (chain, v) on old.chain = new.chain");
            batch(&format!("merge into {table} old {using} when matched then update {set}")).await
        }
        15 => {
            let again = format!("insert into {table} values ({id}, {v}, '{}', to_timestamp({v}))", &table[..5]);
            batch(&format!("begin; delete from {table} where chain = {id}; {again}; commit")).await
        }
        16 => batch(&format!("begin; prepare up as {update}; execute up; deallocate up; commit")).await,
        17 if is_north => batch(&format!("update shop.north_edit {set} where chain = {id}")).await,
        18 if is_north && dice.is_multiple_of(5) => batch(&format!("select shop.bump({id}, {v})")).await,
        19 if is_north && dice.is_multiple_of(5) => batch(&format!("call shop.bump_and_commit({id}, {v})")).await,
        20 if dice.is_multiple_of(5) => batch(&format!("do $$ begin {update}; end $$")).await,
        21 => after_a_savepoint(client, table, id, &update).await,
        _ => {
            let text = format!("update {table} set v = $1, at = to_timestamp($1::bigint::float8) where chain = $2");
            client.execute(&text, &[&v, &id]).await.map(drop)
        }
    };
    acknowledged(chains, chain, v, done)
}

/// Reads its own write before it commits it: the cache must not come between.
async fn in_a_transaction(
    chains: &Chains,
    client: &Client,
    table: &str,
    id: i32,
    v: i64,
    update: &str,
) -> Result<(), Error> {
    client.batch_execute("begin").await?;
    client.batch_execute(update).await?;
    own_version(chains, client, table, id, v).await?;
    client.batch_execute("commit").await
}

async fn own_version(chains: &Chains, client: &Client, table: &str, id: i32, v: i64) -> Result<(), Error> {
    let messages =
        client.simple_query(&format!("select max(v) from {table} where chain = {id} group by chain")).await?;
    let read = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    if read.as_deref() != Some(&*v.to_string()) {
        chains.violation(format!("OWN WRITE of {v} to chain {id} reads as {read:?}"));
    }
    Ok(())
}

async fn after_a_savepoint(client: &Client, table: &str, id: i32, update: &str) -> Result<(), Error> {
    let wrong = format!("update {table} set v = -7 where chain = {id}");
    for text in ["begin", "savepoint s", &wrong, "rollback to s", update, "commit"] {
        client.batch_execute(text).await?;
    }
    Ok(())
}

/// Writes what nobody else may ever see.
async fn never_committed(chains: &Chains, chain: &Chain, client: &Client, table: &str, dice: u32) -> Result<(), Error> {
    let (id, v) = (chain.id, -chain.latest() - 1);
    let update = format!("update {table} set v = {v} where chain = {id}");
    if dice.is_multiple_of(2) {
        let failed = client.batch_execute(&format!("{update}; select 1 / 0")).await;
        assert!(failed.is_err(), "a division by zero");
        return Ok(());
    }
    client.batch_execute("begin").await?;
    client.batch_execute(&update).await?;
    own_version(chains, client, table, id, v).await?;
    client.batch_execute("rollback").await
}

/// Two commits whose answers are not waited for in between.
async fn pipelined(chains: &Chains, chain: &Chain, client: &Client, table: &str) -> Result<(), Error> {
    let text = format!("update {table} set v = $1, at = to_timestamp($1::bigint::float8) where chain = $2");
    let statement = client.prepare(&text).await?;
    let (first, second) = (chain.next(), chain.next());
    let one =
        async { acknowledged(chains, chain, first, client.execute(&statement, &[&first, &chain.id]).await.map(drop)) };
    let other = async {
        acknowledged(chains, chain, second, client.execute(&statement, &[&second, &chain.id]).await.map(drop))
    };
    let (one, other) = tokio::join!(one, other);
    one.and(other)
}
