//! Whether a read's answer may be kept: it depends on relations with epochs, on what the cache's key holds, and on nothing else.

use std::borrow::Cow;
use std::time::Duration;

use super::functions::{self, Called, Conduct};
use super::rules::{Input, Transaction};
use super::{CachedRead, Reason, moment, names, share};
use crate::catalog::model::{Catalog, Oid, Persistence, Relation, RelationKind};
use crate::config::model::CacheRule;
use crate::sql::facts::Statement;

/// Decides whether the answer of `statement`, a single read, may be served from the cache and kept there.
///
/// # Errors
/// The first reason why not.
pub fn cacheable(input: &Input<'_>, statement: &Statement) -> Result<CachedRead, Reason> {
    session(input, statement)?;
    judged(input, statement)
}

/// Decides the same of what one shard gives to an answer. `input` is the client's, but for the text, which is what the shard is
/// sent, and the catalog, which is that shard's; `part` is the statement of that text. Whether it is worth it the client's own tells.
///
/// # Errors
/// As [`cacheable`].
pub fn part_is_cacheable(input: &Input<'_>, asked: &Statement, part: &Statement) -> Result<CachedRead, Reason> {
    session(input, asked)?;
    judged(input, part)
}

fn judged(input: &Input<'_>, statement: &Statement) -> Result<CachedRead, Reason> {
    let catalog = input.catalog.ok_or_else(|| no("no-catalog", "the server's catalog has not been read yet"))?;
    syntax(statement)?;
    let read = relations(input, statement, catalog)?;
    let mut called = functions::called(statement, catalog, input.session.search_path);
    called.extend(read.named.iter().flat_map(|relation| functions::view_calls(relation, catalog)));
    called.iter().try_for_each(pure)?;
    read.named.iter().try_for_each(|relation| row_rules(relation, catalog))?;
    operators_and_casts(statement, catalog)?;
    moment::check(input, statement, catalog, &read.all)?;
    let (ttl, is_pinned) = keeping(input, &read.all)?;
    let mut oids: Vec<Oid> = read.all.iter().map(|relation| relation.oid).collect();
    oids.sort_unstable();
    let reason = if input.facts.hint.cache == Some(true) {
        Reason { code: "cache-hint", text: "the text asks for it, and every input of the answer is in the key".into() }
    } else {
        Reason { code: "cacheable", text: "every input of the answer is in the key or has an epoch".into() }
    };
    let shared_by_readers_of = share::needs(input, statement, catalog, (&read.named, &read.all), &called);
    Ok(CachedRead {
        relations: oids,
        catalog_version: catalog.version,
        ttl,
        is_pinned,
        from_replica: false,
        shared_by_readers_of,
        reason,
    })
}

pub(super) fn no(code: &'static str, text: impl Into<Cow<'static, str>>) -> Reason {
    Reason { code, text: text.into() }
}

fn session(input: &Input<'_>, statement: &Statement) -> Result<(), Reason> {
    if !input.cache.enabled || !input.database.cache {
        return Err(no("cache-off", "the cache is off for this database"));
    }
    if input.facts.hint.cache == Some(false) {
        return Err(no("hint", "the text asks for an answer that is not from the cache"));
    }
    // Before all that hangs on the session: so much is known of a statement for good.
    if input.cache.olap_only && input.facts.hint.cache != Some(true) && !statement.shape.is_analytical() {
        return Err(no("point-read", "reads that are not analytical are not cached"));
    }
    match input.session.in_transaction {
        Transaction::VirginReadCommitted if !input.cache.in_transactions => {
            return Err(no("in-transaction", "the configuration serves no transactions from the cache"));
        }
        Transaction::Outside | Transaction::VirginReadCommitted => {}
        Transaction::Written => return Err(no("after-write", "the transaction has written: its own rows must show")),
        Transaction::Isolated => return Err(no("isolation", "the transaction's snapshot is older than any epoch")),
        Transaction::Failed => return Err(no("failed-transaction", "the transaction has failed")),
    }
    if !input.session.text_is_plain {
        return Err(no("client-encoding", "the text's encoding may hide quotes in its characters"));
    }
    Ok(())
}

/// What the text alone rules out.
fn syntax(statement: &Statement) -> Result<(), Reason> {
    if statement.explain {
        return Err(no("explain", "EXPLAIN ANALYZE measures"));
    }
    if statement.locks_rows {
        return Err(no("row-locks", "it locks rows"));
    }
    if statement.shape.sampled {
        return Err(no("sample", "TABLESAMPLE picks other rows each time"));
    }
    if statement.system_columns {
        return Err(no("system-columns", "it reads where a row lies, not what it holds"));
    }
    if !statement.effects.is_empty() {
        return Err(no("session-effect", "it changes or reads the session's own state"));
    }
    // The key holds the effective role, the search path and the database, and neither the login role nor the clock.
    let keyed =
        |name: &str| matches!(name, "current_catalog" | "current_role" | "current_schema" | "current_user" | "user");
    match statement.value_functions.iter().find(|name| !keyed(name)) {
        Some(name) => Err(no("volatile-function", format!("{} is another value each time", name.to_ascii_uppercase()))),
        None => Ok(()),
    }
}

/// `current_setting(text)` and `current_setting(text, boolean)`
const CURRENT_SETTING: [Oid; 2] = [2077, 3294];

struct Read<'a> {
    /// What the names of the text may mean.
    named: Vec<&'a Relation>,
    /// That, and all that it reads in turn.
    all: Vec<&'a Relation>,
}

fn relations<'a>(input: &Input<'_>, statement: &Statement, catalog: &'a Catalog) -> Result<Read<'a>, Reason> {
    let mut read = Read { named: Vec::new(), all: Vec::new() };
    for name in &statement.reads {
        if name.schema.is_none() && input.session.has_temporary_objects {
            return Err(no("temporary-objects", format!("{} may be a temporary table", names::display(name))));
        }
        let candidates = names::candidates(name, catalog, input.session.search_path);
        if candidates.is_empty() {
            return Err(no("unknown-relation", format!("{} is not known", names::display(name))));
        }
        for relation in candidates {
            read.named.push(relation);
            for oid in &relation.reads {
                let part = catalog.relations.get(oid);
                let part = part.ok_or_else(|| no("unknown-relation", "a view reads what is not known"))?;
                kept(part)?;
                if !read.all.iter().any(|known| known.oid == part.oid) {
                    read.all.push(part);
                }
            }
        }
    }
    Ok(read)
}

/// Whether the relation is one whose every change raises an epoch.
fn kept(relation: &Relation) -> Result<(), Reason> {
    let of = |what: &str| format!("{}.{} is {what}", relation.schema, relation.name);
    if names::is_system(relation) {
        return Err(no("system-catalog", of("PostgreSQL's own")));
    }
    match relation.kind {
        RelationKind::Table | RelationKind::PartitionedTable | RelationKind::View | RelationKind::MaterializedView => {}
        RelationKind::ForeignTable => return Err(no("foreign-table", of("a foreign table"))),
        RelationKind::Sequence | RelationKind::Other => return Err(no("not-a-table", of("no table and no view"))),
    }
    match relation.persistence {
        Persistence::Permanent => {}
        Persistence::Unlogged => return Err(no("unlogged-table", of("unlogged: a crash empties it unseen"))),
        Persistence::Temporary => return Err(no("temporary-objects", of("temporary"))),
    }
    Ok(())
}

/// Whether the key holds all that decides which rows are shown: the role, and the settings that the policies ask for.
fn row_rules(relation: &Relation, catalog: &Catalog) -> Result<(), Reason> {
    if !relation.row_security {
        return Ok(());
    }
    let why = |what: String| {
        Err(no("row-security", format!("a policy of {}.{} depends on {what}", relation.schema, relation.name)))
    };
    let rules = &relation.row_rules;
    if rules.opaque {
        return why("more than the role and settings that it names".into());
    }
    // The key holds what a session sets. PostgreSQL's own settings change in ways that nobody sets (`transaction_read_only`).
    if let Some(name) = rules.settings.iter().find(|name| !name.contains('.')) {
        return why(format!("the setting {name}, which is PostgreSQL's own"));
    }
    let plain = |called: &Called| pure(called).is_ok();
    let others = rules.functions.iter().filter(|oid| !CURRENT_SETTING.contains(oid));
    let mut called = others.map(|&oid| functions::of_oid(oid, catalog));
    match called.find(|called| !plain(called)) {
        Some(called) => why(format!("{}, which reads more than its arguments and the key's settings", called.name)),
        None => Ok(()),
    }
}

fn pure(called: &Called) -> Result<(), Reason> {
    let name = &called.name;
    if called.security_definer {
        return Err(no("security-definer", format!("{name} runs with its owner's rights")));
    }
    match called.conduct {
        Conduct::Pure | Conduct::Keyed => Ok(()),
        Conduct::Stable => {
            Err(no("stable-function", format!("{name} reads more than its arguments and the key's settings")))
        }
        Conduct::Harmless | Conduct::Volatile => {
            Err(no("volatile-function", format!("{name} may answer otherwise each time")))
        }
    }
}

fn operators_and_casts(statement: &Statement, catalog: &Catalog) -> Result<(), Reason> {
    let known = |name: &str| functions::is_known_operator(name) || catalog.user_operators.contains_key(name);
    if let Some(name) = statement.operators.iter().find(|name| !known(name)) {
        return Err(no("operator", format!("the operator {name} may read more than its operands")));
    }
    if catalog.has_impure_user_casts {
        return Err(no("user-cast", "a cast of this database calls a function that is not immutable"));
    }
    for name in &statement.casts {
        let named = catalog.types.values().filter(|found| found.name == name.name);
        let mut any = false;
        for found in named {
            any = true;
            if &*found.schema != "pg_catalog" && found.kind != 'e' {
                return Err(no("user-type", format!("what a cast to {} calls is not known", name.name)));
            }
        }
        // reg* types read the catalog by name, xml reads `xmloption`, timetz the date for its offset.
        if !any || name.name.starts_with("reg") || matches!(&*name.name, "xml" | "timetz") {
            return Err(no(
                "cast",
                format!("a cast to {} reads more than its operand and the key's settings", name.name),
            ));
        }
    }
    Ok(())
}

/// For how long, and whether it is pinned: the statement's own rule, else the tables' together.
fn keeping(input: &Input<'_>, relations: &[&Relation]) -> Result<(Duration, bool), Reason> {
    let (mut ttl, mut is_pinned) = (input.cache.ttl, false);
    match input.cache.statements.get(&input.facts.fingerprint.0) {
        Some(CacheRule::Never) => {
            return Err(no("statement-rule", "the configuration keeps the statement out of the cache"));
        }
        Some(CacheRule::Ttl(rule)) => ttl = *rule,
        Some(CacheRule::Pin) => is_pinned = true,
        None => {
            for relation in relations.iter().filter(|_| !input.cache.tables.is_empty()) {
                let name = format!("{}.{}", relation.schema, relation.name);
                match input.cache.tables.get(&name) {
                    None => {}
                    Some(CacheRule::Never) => {
                        return Err(no("table-rule", format!("the configuration keeps {name} out of the cache")));
                    }
                    Some(CacheRule::Ttl(rule)) => ttl = ttl.min(*rule),
                    Some(CacheRule::Pin) => is_pinned = true,
                }
            }
        }
    }
    let ttl = input.facts.hint.ttl_seconds.map_or(ttl, |seconds| Duration::from_secs(seconds.into()));
    Ok((ttl, is_pinned))
}
