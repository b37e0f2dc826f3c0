//! The ways in which a version of a row can be committed, and those in which it must not become visible.
//!
//! Every write says "where it is older": one that comes late, after its client gave it up, must not take a chain back.

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::chains::{Chain, Chains};
use super::world::{CHILD, KEPT, KEPT_VERSIONS, LEDGER, LOG, MIRROR, PART, RULED, SOUTH, TENANTS};

/// How many ways there are to write an item, with their weights.
const DICE: u32 = 28;

/// Commits the next version of a chain in one way or another. `dice` picks which. `other` is connected to another pgherd.
pub(super) async fn write(
    chains: &Chains,
    chain: &Chain,
    client: &Client,
    other: &Client,
    dice: u32,
) -> Result<(), Error> {
    let id = chain.id;
    if id < 300 {
        return item(chains, chain, client, other, dice).await;
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
    } else if TENANTS.contains(&id) {
        plain(client, "shop.tenants", id, v, dice).await
    } else if RULED.contains(&id) {
        plain(client, "shop.rule_base", id, v, dice).await
    } else if PART.contains(&id) {
        let partition = if id == 602 { "shop.part_high" } else { "shop.part_low" };
        plain(client, if dice.is_multiple_of(2) { "shop.part" } else { partition }, id, v, dice / 2).await
    } else {
        assert!(LOG.contains(&id), "nothing writes chain {id}");
        copy(client, id, v).await
    };
    acknowledged(chains, chain, v, done)
}

pub(super) fn acknowledged(chains: &Chains, chain: &Chain, v: i64, done: Result<(), Error>) -> Result<(), Error> {
    if done.is_ok() {
        chains.acknowledged(chain, v);
    }
    done
}

async fn plain(client: &Client, table: &str, id: i32, v: i64, dice: u32) -> Result<(), Error> {
    let text = format!("update {table} set v = {v} where chain = {id} and v < {v}");
    match dice % 5 {
        0 => client.batch_execute(&text).await,
        1 => {
            let text = format!("update {table} set v = $1 where chain = $2 and v < $1");
            client.execute(&text, &[&v, &id]).await.map(drop)
        }
        2 => step_by_step(client, &["begin", &text, "commit"]).await,
        // Slow, so that others begin and end beside it.
        3 => client.batch_execute(&format!("{text} and {SLOW}")).await,
        _ => client.batch_execute(&format!("begin; {text}; commit")).await,
    }
}

/// A condition that is true, and takes some milliseconds to find.
const SLOW: &str = "(select count(*) from generate_series(1, 80000)) > 0";

pub(super) async fn step_by_step(client: &Client, steps: &[&str]) -> Result<(), Error> {
    for step in steps {
        client.batch_execute(step).await?;
    }
    Ok(())
}

async fn copy(client: &Client, id: i32, v: i64) -> Result<(), Error> {
    let mut sink = pin!(client.copy_in("copy shop.log (chain, v) from stdin").await?);
    sink.send(Bytes::from(format!("{id}\t{v}\n"))).await?;
    sink.finish().await.map(drop)
}

/// Items can be written in all the ways that there are.
async fn item(chains: &Chains, chain: &Chain, client: &Client, other: &Client, dice: u32) -> Result<(), Error> {
    let table = if SOUTH.contains(&chain.id) { "south.item" } else { "north.item" };
    let is_north = table == "north.item";
    let way = dice % DICE;
    match way {
        0..=2 => return never_committed(chains, chain, client, table, dice).await,
        3 | 4 => return pipelined(chains, chain, client, table).await,
        _ => {}
    }
    let (id, v) = (chain.id, chain.next());
    let set = format!("set v = {v}, at = to_timestamp({v})");
    let update = format!("update {table} {set} where chain = {id} and v < {v}");
    let batch = async |text: &str| client.batch_execute(text).await;
    let done = match way {
        5..=8 | 22 | 23 => batch(&format!("{update} and {SLOW}")).await,
        9 | 10 => in_a_transaction(chains, client, table, id, v, &update).await,
        11 => batch(&format!("select 1; {update}; select 2")).await,
        12 => batch(&format!("with done as ({update} returning 1) select count(*) from done")).await,
        13 => {
            let insert = format!("insert into {table} as old values ({id}, {v}, '-', to_timestamp({v}))");
            let newer = "set v = excluded.v, at = excluded.at where old.v < excluded.v";
            batch(&format!("{insert} on conflict (chain) do update {newer}")).await
        }
        14 => {
            let using = format!("using (values ({id}, {v}::bigint)) as new (chain, v) on old.chain = new.chain");
            batch(&format!("merge into {table} old {using} when matched and old.v < new.v then update {set}")).await
        }
        15 => {
            let again = format!("insert into {table} values ({id}, {v}, '{}', to_timestamp({v}))", &table[..5]);
            let delete = format!("delete from {table} where chain = {id} and v < {v}");
            batch(&format!("begin; {delete}; {again} on conflict do nothing; commit")).await
        }
        16 => batch(&format!("begin; prepare up as {update}; execute up; deallocate up; commit")).await,
        17 if is_north => batch(&format!("update shop.north_edit {set} where chain = {id} and v < {v}")).await,
        18 if is_north && dice.is_multiple_of(5) => batch(&format!("select shop.bump({id}, {v})")).await,
        19 if is_north && dice.is_multiple_of(5) => batch(&format!("call shop.bump_and_commit({id}, {v})")).await,
        20 if dice.is_multiple_of(5) => batch(&format!("do $$ begin {update}; end $$")).await,
        21 => after_a_savepoint(client, table, id, &update).await,
        24 | 25 if dice.is_multiple_of(3) => two_phase(client, other, id, v, &update).await,
        26 => step_by_step(client, &["begin", &update, "commit"]).await,
        // So long that servers come and go beside it.
        27 if dice.is_multiple_of(3) => {
            batch(&format!("{update} and pg_sleep({}) is not null", f64::from(dice % 10) / 8.0)).await
        }
        _ => {
            let set = "set v = $1, at = to_timestamp($1::bigint::float8)";
            client.execute(&format!("update {table} {set} where chain = $2 and v < $1"), &[&v, &id]).await.map(drop)
        }
    };
    acknowledged(chains, chain, v, done)
}

/// Prepared through one pgherd, committed through another.
async fn two_phase(client: &Client, other: &Client, id: i32, v: i64, update: &str) -> Result<(), Error> {
    let prepare = format!("prepare transaction 'proof_{id}_{v}'");
    step_by_step(client, &["begin", update, &prepare]).await?;
    other.batch_execute(&format!("commit prepared 'proof_{id}_{v}'")).await
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
    step_by_step(client, &["begin", update]).await?;
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
    step_by_step(client, &["begin", "savepoint s", &wrong, "rollback to s", update, "commit"]).await
}

/// Writes what nobody else may ever see.
async fn never_committed(chains: &Chains, chain: &Chain, client: &Client, table: &str, dice: u32) -> Result<(), Error> {
    let (id, v) = (chain.id, -chain.latest() - 1);
    let update = format!("update {table} set v = {v} where chain = {id}");
    match dice % 3 {
        0 => {
            let Err(error) = client.batch_execute(&format!("{update}; select 1 / 0")).await else {
                chains.violation(format!("{update} and a division by zero went well"));
                return Ok(());
            };
            // Anything else is a loss.
            if error.code().is_some_and(|code| code.code() == "22012") { Ok(()) } else { Err(error) }
        }
        1 => {
            step_by_step(client, &["begin", &update]).await?;
            own_version(chains, client, table, id, v).await?;
            client.batch_execute("rollback").await
        }
        _ => {
            let prepare = format!("prepare transaction 'never_{id}_{}_{}'", -v, rand::random::<u32>());
            step_by_step(client, &["begin", &update, &prepare]).await?;
            client.batch_execute(&prepare.replace("prepare transaction", "rollback prepared")).await
        }
    }
}

/// Two commits whose answers are not waited for in between.
async fn pipelined(chains: &Chains, chain: &Chain, client: &Client, table: &str) -> Result<(), Error> {
    let set = "set v = $1, at = to_timestamp($1::bigint::float8)";
    let statement = client.prepare(&format!("update {table} {set} where chain = $2 and v < $1")).await?;
    let (first, second) = (chain.next(), chain.next());
    let one =
        async { acknowledged(chains, chain, first, client.execute(&statement, &[&first, &chain.id]).await.map(drop)) };
    let other = async {
        acknowledged(chains, chain, second, client.execute(&statement, &[&second, &chain.id]).await.map(drop))
    };
    let (one, other) = tokio::join!(one, other);
    one.and(other)
}
