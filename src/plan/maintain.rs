//! VACUUM, ANALYZE, REINDEX and CLUSTER in a database with shards: on every server that has what they are about, each by itself.

use super::rules::Input;
use super::sharded::{Place, is_index, place, refusal};
use super::{Maintained, Plan, Reason, Refusal, mentioned};
use crate::sql::facts::{Class, Name};
use crate::sql::maintenance::{About, Maintenance, maintenance};

/// Which servers have what is maintained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Servers {
    primary: bool,
    shards: bool,
}

const EVERYWHERE: Servers = Servers { primary: true, shards: true };

/// A plan for maintenance that concerns the shards; `None` for all else.
pub(super) fn decide(input: &Input<'_>) -> Option<Plan> {
    let is_maintenance = |class: Class| class == Class::Utility;
    if !input.database.is_distributed()
        || !input.session.text_is_plain
        || !input.facts.statements.iter().any(|it| is_maintenance(it.class) && !it.explain)
    {
        return None;
    }
    let all = maintenance(input.text, input.session.standard_conforming_strings);
    for found in all.iter().flatten() {
        match servers(input, &found.about) {
            Err(refusal) => return Some(Plan::Refuse(refusal)),
            Ok(servers) if servers.shards => return Some(planned(input, found, servers)),
            Ok(_) => {}
        }
    }
    None
}

fn planned(input: &Input<'_>, found: &Maintenance, servers: Servers) -> Plan {
    if input.facts.single().is_none() {
        let message = "a string of several statements with maintenance of the shards' tables cannot be split";
        return Plan::Refuse(refusal("multi-statement", message.into(), "Send the statements one by one."));
    }
    let text = if servers.primary { "the primary and every shard have it" } else { "every shard has it" };
    Plan::Maintain(std::sync::Arc::new(Maintained {
        on_primary: servers.primary,
        shards: (0..input.database.shards.len()).collect(),
        only_alone: found.only_alone,
        reason: Reason { code: "maintenance", text: text.into() },
    }))
}

fn servers(input: &Input<'_>, about: &About) -> Result<Servers, Refusal> {
    match about {
        About::Everything => Ok(EVERYWHERE),
        About::Tables(tables) => of_tables(input, tables),
        About::Index(name) => of_relation(input, name),
        About::Schema(name) => Ok(Servers {
            primary: input.catalog.is_none_or(|catalog| catalog.schemas.contains(name)),
            shards: input.shards.is_some_and(|catalog| catalog.schemas.contains(name)),
        }),
        About::Database(_) if input.database.has_one_name() => Ok(EVERYWHERE),
        About::Database(name) => Err(refusal(
            "server-function",
            format!("the database {name} is called otherwise on some of the servers"),
            "Leave its name out (from PostgreSQL 16 on), or run it on each server.",
        )),
    }
}

fn of_tables(input: &Input<'_>, tables: &[Name]) -> Result<Servers, Refusal> {
    let mut all = Servers::default();
    for table in tables {
        let servers = of_relation(input, table)?;
        all = Servers { primary: all.primary || servers.primary, shards: all.shards || servers.shards };
    }
    if all == EVERYWHERE {
        let message = "one statement maintains tables of the shards and of the primary";
        return Err(refusal("mixed", message.into(), "Send a statement for each."));
    }
    Ok(all)
}

/// Partitions and indexes of the shards' tables are no tables of the configuration, and lie where these do.
fn of_relation(input: &Input<'_>, name: &Name) -> Result<Servers, Refusal> {
    let on_primary = Servers { primary: true, shards: false };
    let on_shards = Servers { primary: false, shards: true };
    match place(input, name) {
        Ok(Place::Shards) => Ok(on_shards),
        Ok(Place::Primary) if mentioned::lies_on_shards(input, name) => Err(mentioned::ambiguous(name)),
        Ok(Place::Primary) => Ok(on_primary),
        Ok(Place::Nowhere) if is_index(input, name) => Ok(on_shards),
        Ok(Place::Nowhere) => Ok(on_primary),
        Err(refusal) if refusal.code == "unknown-on-primary" => Ok(on_shards),
        Err(refusal) => Err(refusal),
    }
}
