//! Versions that are committed by changing what tables, views, functions, triggers and rights are.
//!
//! A definition cannot be written "where it is older". So each of these transactions first writes the chain's row of
//! `shop.guard`, where it is older, and goes on only if it did: one that comes late changes nothing.

use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::chains::{Chain, Chains};
use super::world::{EDITION, GATE, HUNG, MATVIEW, STAMP, SWAP, TOGGLED, WIDE, World};
use super::writes::{acknowledged, step_by_step};

/// Columns that a table may have had in its time, dropped ones among them, are 1,600.
const COLUMNS: i64 = 1000;

/// Commits the next version of a chain of definitions. `other` is connected to another pgherd.
pub(super) async fn write(
    chains: &Chains,
    chain: &Chain,
    world: &World,
    client: &Client,
    other: &Client,
    dice: u32,
) -> Result<(), Error> {
    if TOGGLED.contains(&chain.id) {
        return toggled(chains, chain, client, other).await;
    }
    let v = chain.next();
    let done = change(chain, v, world, client, dice).await;
    acknowledged(chains, chain, v, done)
}

async fn change(chain: &Chain, v: i64, world: &World, client: &Client, dice: u32) -> Result<(), Error> {
    let id = chain.id;
    let statement = if SWAP.contains(&id) {
        format!("truncate shop.swap; insert into shop.swap values ({id}, {v})")
    } else if STAMP.contains(&id) {
        format!("create or replace view shop.stamp as select 900 as chain, {v}::bigint as v from shop.one")
    } else if EDITION.contains(&id) {
        let replace = "create or replace function shop.edition() returns bigint language sql immutable as";
        format!("{replace} 'select {v}::bigint'")
    } else if WIDE.contains(&id) {
        let rewrite = format!("alter table shop.wide alter v type bigint using {v}");
        match dice % 3 {
            0 if v < COLUMNS => format!("{rewrite}; alter table shop.wide add c{v} int default {v}"),
            1 => format!("alter table shop.wide drop if exists c{}; {rewrite}", v - 1),
            _ => rewrite,
        }
    } else if GATE.contains(&id) {
        let readers = world.readers();
        match v % 2 {
            0 => format!("grant select on shop.gate to {readers}"),
            _ => format!("revoke select on shop.gate from {readers}"),
        }
    } else if MATVIEW.contains(&id) {
        format!("update shop.mat_base set v = {v} where chain = {id}; refresh materialized view shop.mat")
    } else {
        assert!(HUNG.contains(&id), "nothing defines chain {id}");
        return hang(client, id, v).await;
    };
    let guard = guard(id, v);
    match dice % 2 {
        // In one string.
        0 => client.batch_execute(&format!("begin; {guard}; {statement}; commit")).await,
        _ => step_by_step(client, &["begin", &guard, &statement, "commit"]).await,
    }
}

/// Fails if a newer version has come before.
fn guard(id: i32, v: i64) -> String {
    format!(
        "update shop.guard set v = {v} where chain = {id} and v < {v}; \
         select 1 / count(*) from shop.guard where chain = {id} and v = {v}"
    )
}

/// Puts another partition in the place of the one that is there.
async fn hang(client: &Client, id: i32, v: i64) -> Result<(), Error> {
    step_by_step(client, &["begin", &guard(id, v)]).await?;
    let text = "select inhrelid::regclass::text from pg_inherits where inhparent = 'shop.hung'::regclass";
    let messages = client.simple_query(text).await?;
    let present = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let old = present.unwrap_or("shop.hung_0");
    let steps = [
        format!("create table shop.hung_{v} (chain int not null, v bigint not null)"),
        format!("insert into shop.hung_{v} values ({id}, {v})"),
        format!("alter table shop.hung detach partition {old}"),
        format!("alter table shop.hung attach partition shop.hung_{v} for values in ({id})"),
        format!("drop table {old}"),
        "commit".to_owned(),
    ];
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    step_by_step(client, &steps).await
}

/// A trigger comes while somebody writes the table: that write may or may not fire it. The next one does.
async fn toggled(chains: &Chains, chain: &Chain, client: &Client, other: &Client) -> Result<(), Error> {
    let (id, v) = (chain.id, chain.next());
    let create = "create or replace trigger toggle after update on shop.toggle_base \
                  for each row execute function shop.toggle()";
    let create = format!("begin; {}; {create}; commit", guard(id, v));
    let update = format!("update shop.toggle_base set v = {v} where chain = {id} and v < {v}");
    let (created, updated) = tokio::join!(client.batch_execute(&create), other.batch_execute(&update));
    created?;
    updated?;
    let again = client.batch_execute(&format!("update shop.toggle_base set v = v where chain = {id}")).await;
    acknowledged(chains, chain, v, again)?;
    let end = chain.next();
    let drop = "drop trigger if exists toggle on shop.toggle_base";
    client.batch_execute(&format!("begin; {}; {drop}; commit", guard(id, end))).await
}
