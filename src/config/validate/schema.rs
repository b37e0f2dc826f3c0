//! `shard_by = "schema"`: schemas that each lie whole on one shard.

use std::collections::BTreeMap;

use crate::config::model::{SchemaPattern, Schemas};
use crate::config::names;
use crate::config::raw::Table;

/// Reads which schemas of a database that has `shards` shards are spread over them.
pub(super) fn read(database: &Table<'_>, shards: usize) -> Option<Schemas> {
    if database.choice("shard_by") != Some(1) {
        for key in ["schemas", "schema"] {
            if database.has(key) {
                database.fault(key, "tables of this database are spread one by one", "set shard_by = \"schema\"");
            }
        }
        return None;
    }
    if shards == 0 {
        database.fault("shard_by", "this database has no shards", "name them in shards");
    }
    if !database.has("schemas") && !database.has("schema") {
        let help = "write schemas = [\"tenant_*\"], or name them with their shards in [[database.schema]]";
        database.fault("shard_by", "which schemas are spread is not said", help);
    }
    let mut listed = BTreeMap::new();
    for table in database.tables("schema") {
        let name = table.required_text("name", "name a schema").and_then(|text| {
            names::single(&text).map_err(|problem| table.fault("name", problem, "name a schema")).ok()
        });
        if !table.has("shard") {
            table.fault("shard", "this key is missing", "give the index of a shard, from 0");
        }
        let shard = table.count("shard", 0..shards.max(1) as u64);
        let Some((name, shard)) = name.filter(|name| may_be_spread(&table, "name", name)).zip(shard) else { continue };
        if listed.insert(name, shard as usize).is_some() {
            table.fault("name", "this schema stands here twice", "a schema lies on one shard");
        }
    }
    let hashed = database.texts("schemas").iter().filter_map(|text| pattern(database, text)).collect();
    Some(Schemas { listed, hashed })
}

fn pattern(database: &Table<'_>, text: &str) -> Option<SchemaPattern> {
    let help = "write a schema's name, or what names begin with and a *, as \"tenant_*\"";
    let (name, is_prefix) = match text.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (text, false),
    };
    match names::single(name) {
        Ok(name) => may_be_spread(database, "schemas", &name).then_some(match is_prefix {
            true => SchemaPattern::Prefix(name),
            false => SchemaPattern::Name(name),
        }),
        Err(problem) => {
            database.fault("schemas", problem, help);
            None
        }
    }
}

/// Schemas of PostgreSQL's own are on every server.
fn may_be_spread(table: &Table<'_>, key: &str, name: &str) -> bool {
    let is_own = name.starts_with("pg_") || name == "information_schema" || name == "pgherd";
    if is_own {
        table.fault(key, format!("the schema {name} is on every server"), "name schemas of your own");
    }
    !is_own
}
