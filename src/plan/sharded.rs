//! The gate before the shards: which statements name sharded or reference tables, and which might reach them unseen.

use std::collections::HashSet;
use std::sync::Arc;

use super::distribute::{self, Answered, Distributed, InsertSelect, Parameters};
use super::functions::{self, Conduct};
use super::rules::{Input, Transaction};
use super::{Plan, Reason, Refusal, maintain, mentioned, names, policies, unnamed, wrapped};
use crate::catalog::model::{Catalog, RelationKind, Type};
use crate::config::model::Table;
use crate::sql::facts::{Class, Name, Statement};

/// A plan for a query string of a database with sharded tables; `None` where only the primary is concerned.
pub(super) fn decide(input: &Input<'_>) -> Option<Plan> {
    if let Some(plan) = maintain::decide(input) {
        return Some(plan);
    }
    if input.database.tables.is_empty() {
        return None;
    }
    if let Some(statement) = input.facts.single().filter(|statement| statement.class == Class::Ddl) {
        match ddl(input, statement) {
            Ok(Some(plan)) => return Some(plan),
            Ok(None) => {}
            Err(refusal) => return Some(Plan::Refuse(refusal)),
        }
    }
    if let Some(Err(refusal)) = input.shards.map(|shards| policies::check(input, shards)) {
        return Some(Plan::Refuse(refusal));
    }
    let mut distributed = false;
    let changes = |statement: &Statement| matches!(statement.class, Class::Ddl | Class::Opaque);
    if input.facts.statements.iter().any(changes)
        && let Err(refusal) = unnamed::check(input)
    {
        return Some(Plan::Refuse(refusal));
    }
    for statement in &input.facts.statements {
        match touches(input, statement) {
            Ok(touched) => distributed |= touched,
            Err(refusal) if refusal.code == mentioned::MATERIALIZED => return Some(Plan::Refuse(refusal)),
            Err(refusal) => return Some(into_primary(input).unwrap_or(Plan::Refuse(refusal))),
        }
    }
    if !distributed {
        return None;
    }
    if let Some(refusal) = shadows(input) {
        return Some(Plan::Refuse(refusal));
    }
    match input.facts.single() {
        Some(statement) if is_bound_wrongly(input, statement) => Some(Plan::Shard {
            shard: 0,
            detachable: false,
            reason: Reason { code: "parameters", text: "its Bind has too many or too few: any server says so".into() },
        }),
        Some(statement) if statement.class == Class::CopyIn => Some(copy_in(input, statement)),
        Some(statement) if wrapped::holds_a_query(statement) => wrapped::decide(input),
        Some(statement) => distribute(input, statement),
        None => Some(Plan::Refuse(refusal(
            "multi-statement",
            "a string of several statements that names a sharded table cannot be split".into(),
            "Send the statements one by one.",
        ))),
    }
}

/// Whether PostgreSQL refuses the Bind for the number of its parameters.
fn is_bound_wrongly(input: &Input<'_>, statement: &Statement) -> bool {
    input.bound.is_some_and(|bound| bound.values.len() != bound.types.len().max(statement.parameters.into()))
}

/// Comparisons and types in schemas that search_path names before `pg_catalog` would be taken for PostgreSQL's own: a key that is compared by
/// `=` would not be compared by the key's equality.
fn shadows(input: &Input<'_>) -> Option<Refusal> {
    let path = input.session.search_path;
    let before = &path[..path.iter().position(|schema| &**schema == "pg_catalog")?];
    let shards = input.shards.filter(|_| !before.is_empty())?;
    let own: HashSet<&str> =
        shards.types.values().filter(|it| &*it.schema == "pg_catalog").map(|it| &*it.name).collect();
    let hides = |it: &Type| own.contains(&*it.name) && before.contains(&it.schema);
    let compares = |name: &&str| shards.user_operators.contains_key(*name);
    if !["=", "<>", "<", "<=", ">", ">="].iter().any(compares) && !shards.types.values().any(hides) {
        return None;
    }
    let message = "comparisons or types of a user's that search_path puts before those of pg_catalog, over shards";
    Some(refusal("shadowed", message.into(), "Leave pg_catalog out of search_path: then it comes first."))
}

pub(super) fn refusal(code: &'static str, message: String, hint: &str) -> Refusal {
    Refusal { code, message, hint: hint.into() }
}

/// Where one statement that names sharded or reference tables runs. `only_gathered`: streaming is of no use to whoever asks.
///
/// # Errors
/// It cannot be answered exactly, or the shards are not known yet.
pub(super) fn planned(
    input: &Input<'_>,
    text: &str,
    statement: &Statement,
    only_gathered: bool,
) -> Result<Distributed, Refusal> {
    let Some(shards) = input.shards else {
        return Err(no_catalog());
    };
    distribute::plan(&for_shards(input, text, statement, shards, only_gathered))
}

/// What the distribution planner is told.
fn for_shards<'a>(
    input: &Input<'a>,
    text: &'a str,
    statement: &'a Statement,
    shards: &'a Catalog,
    only_gathered: bool,
) -> distribute::Input<'a> {
    let parameters =
        input.bound.map(|bound| Parameters { types: bound.types, formats: bound.formats, values: bound.values });
    distribute::Input {
        text,
        statement,
        catalog: shards,
        database: input.database,
        search_path: input.session.search_path,
        pure_functions: &input.fanout.pure_functions,
        key_moves: input.fanout.key_moves,
        session: distribute::Session {
            standard_conforming_strings: input.session.standard_conforming_strings,
            same_encoding: input.session.same_encoding,
        },
        parameters: parameters.or((statement.parameters == 0).then_some(Parameters::NONE)),
        coordinator: input.coordinator,
        unstreamed: input.unstreamed.or(only_gathered.then_some(distribute::Unstreamed::Wrapped)),
        split: None,
    }
}

fn distribute(input: &Input<'_>, statement: &Statement) -> Option<Plan> {
    match planned(input, input.text, statement, false) {
        Ok(Distributed::Elsewhere) => None,
        Ok(Distributed::Shard { shard, reason }) => {
            let detachable = input.shards.is_some_and(|shards| is_detachable(input, statement, shards));
            Some(Plan::Shard { shard, detachable, reason })
        }
        Ok(Distributed::Streamed(streamed)) => Some(in_transaction(input, Plan::FanOut(streamed))),
        Ok(Distributed::Gathered(gathered)) => Some(in_transaction(input, Plan::Gather(gathered))),
        Ok(Distributed::Scattered(scattered)) => Some(Plan::Scatter(scattered)),
        Ok(Distributed::InsertSelect(moved)) => Some(insert_in_transaction(input, moved)),
        Ok(Distributed::KeyMove(_)) if input.session.in_transaction == Transaction::Isolated => {
            Some(Plan::Refuse(refusal(
                "isolation",
                "an UPDATE that moves rows between shards under REPEATABLE READ or SERIALIZABLE".into(),
                "Use READ COMMITTED.",
            )))
        }
        Ok(Distributed::KeyMove(moved)) => Some(Plan::KeyMove(moved)),
        Ok(Distributed::NeedsBind) => Some(Plan::NeedsBind(Reason {
            code: "needs-bind",
            text: "which shards it concerns is known when its parameters are".into(),
        })),
        Err(refusal) => Some(Plan::Refuse(refusal)),
    }
}

/// `CREATE TABLE ... AS` of rows that come from the shards alone: the table is made on the primary. `None` for all else.
fn made_on_primary(input: &Input<'_>, statement: &Statement) -> Option<Plan> {
    let shards = input.shards.filter(|_| input.session.text_is_plain)?;
    let created = distribute::create_on_primary(&for_shards(input, input.text, statement, shards, false));
    match created {
        Ok(plan) => Some(insert_in_transaction(input, plan)),
        Err(refusal) if refusal.code == "insert-select" => None,
        Err(refusal) => Some(Plan::Refuse(refusal)),
    }
}

/// INSERT into a table of the primary of rows that come from the shards alone; `None` for all else.
fn into_primary(input: &Input<'_>) -> Option<Plan> {
    if let Some(statement) = input.facts.single().filter(|it| it.class == Class::Ddl) {
        return made_on_primary(input, statement);
    }
    let statement = input.facts.single().filter(|it| it.class == Class::Write && !it.explain)?;
    let [written] = statement.writes.as_slice() else { return None };
    let is_on_shards = |name: &Name| matches!(place(input, name), Ok(Place::Shards | Place::Nowhere));
    let is_mixed = matches!(place(input, written), Ok(Place::Primary)) && statement.reads.iter().all(is_on_shards);
    let (Some(shards), Some(primary)) = (input.shards, input.catalog) else { return None };
    let temporary = written.schema.is_none() && input.session.has_temporary_objects;
    if !is_mixed || temporary || !input.session.text_is_plain {
        return None;
    }
    Some(match user_functions(input, statement) {
        Err(refusal) => Plan::Refuse(refusal),
        Ok(()) => {
            match distribute::insert_into_primary(&for_shards(input, input.text, statement, shards, false), primary) {
                Ok(plan) => insert_in_transaction(input, plan),
                Err(refusal) => Plan::Refuse(refusal),
            }
        }
    })
}

/// TRUNCATE and DDL on tables of the shards; `None` where they are not concerned, or it is for others to refuse.
fn ddl(input: &Input<'_>, statement: &Statement) -> Result<Option<Plan>, Refusal> {
    let Some(shards) = input.shards.filter(|_| input.session.text_is_plain) else { return Ok(None) };
    let is_view = distribute::created_view(input.text, input.session.standard_conforming_strings).is_some();
    let on_shards = |name: &Name| match place(input, name) {
        Ok(Place::Shards) if is_view => Ok(true),
        Ok(Place::Shards) => listed_first(input, name).map(|()| true),
        Ok(Place::Primary) if mentioned::lies_on_shards(input, name) => Err(mentioned::ambiguous(name)),
        Ok(_) => Ok(false),
        // An index has the name of no table, and lies where its table does.
        Err(refusal) if refusal.code == "unknown-on-primary" => {
            if is_index(input, name) || is_view_over_tables(input, name) { Ok(true) } else { Err(refusal) }
        }
        Err(refusal) => Err(refusal),
    };
    match distribute::ddl(&for_shards(input, input.text, statement, shards, false), on_shards)? {
        Distributed::Scattered(scattered) => {
            ddl_of_views(input)?;
            Ok(Some(Plan::Scatter(scattered)))
        }
        Distributed::Shard { shard, reason } => Ok(Some(Plan::Shard { shard, detachable: false, reason })),
        _ => Ok(None),
    }
}

/// A schema that the primary has been given a moment ago need not be known yet: the one that `search_path` lists first must be the table's.
fn listed_first(input: &Input<'_>, name: &Name) -> Result<(), Refusal> {
    let exists = |schema: &str| input.catalog.is_some_and(|it| it.schemas.iter().any(|known| **known == *schema));
    let path = &input.session;
    // The role's own schema is listed by default, and is rarely there.
    let mut listed = path.listed_path.iter().filter(|it| *it != "pg_catalog" && (**it != *path.role || exists(it)));
    let Some(first) = listed.next().filter(|_| name.schema.is_none()) else { return Ok(()) };
    let is_it = |table: &Table| *table.name == *name.name && table.schema == *first;
    match input.database.tables.iter().any(is_it) {
        true => Ok(()),
        false => Err(refusal(
            "ambiguous-name",
            format!("\"{}\" may be a table of schema \"{first}\" by search_path", name.name),
            "Write the table's schema.",
        )),
    }
}

fn copy_in(input: &Input<'_>, statement: &Statement) -> Plan {
    let Some(shards) = input.shards else { return Plan::Refuse(no_catalog()) };
    match distribute::copy_in(&for_shards(input, input.text, statement, shards, false)) {
        Ok(copied) => Plan::CopyIn(copied),
        Err(refusal) => Plan::Refuse(refusal),
    }
}

fn no_catalog() -> Refusal {
    refusal(
        "no-catalog",
        "the shards' catalog has not been read yet".into(),
        "Try again when the shards can be reached.",
    )
}

pub(super) fn is_index(input: &Input<'_>, name: &Name) -> bool {
    let found = input.shards.map(|catalog| names::candidates(name, catalog, input.session.search_path));
    found.is_some_and(|found| found.iter().any(|relation| relation.kind == RelationKind::Other))
}

/// A fan-out reads on connections of its own: right under READ COMMITTED, as long as the transaction has written nothing. Then what
/// pgherd merges itself is read by the transaction's own servers, too; the coordinator would not see what it has written.
pub(super) fn in_transaction(input: &Input<'_>, plan: Plan) -> Plan {
    match (input.session.in_transaction, plan) {
        (Transaction::Outside | Transaction::VirginReadCommitted | Transaction::Failed, plan) => plan,
        (Transaction::Written, plan @ Plan::FanOut(_)) => plan,
        (Transaction::Written, plan) => Plan::Refuse(own_writes(&plan)),
        (Transaction::Isolated, _) => Plan::Refuse(refusal(
            "isolation",
            "a statement over several shards under REPEATABLE READ or SERIALIZABLE".into(),
            "Use READ COMMITTED, or tie the statement to one shard key.",
        )),
    }
}

/// Why a statement that does not see what its transaction has written is refused, and what helps.
fn own_writes(plan: &Plan) -> Refusal {
    let (why, hint) = match plan {
        Plan::Gather(gathered) if gathered.reason.code != "copy" => (
            &*gathered.reason.text,
            "Commit first, tie the statement to one shard key, or write it without that: what is streamed sees what the transaction has written.",
        ),
        Plan::Gather(gathered) | Plan::Cursor(gathered) => {
            (&*gathered.reason.text, "Commit first, tie its query to one shard key, or send the query by itself.")
        }
        _ => ("EXPLAIN runs beside it", "Commit first, or use EXPLAIN (ROUTE)."),
    };
    refusal("own-writes", format!("a statement over several shards in a transaction that has written: {why}"), hint)
}

/// What pgherd merges of an INSERT's query is read by the transaction's own servers where it has written. What goes to the coordinator
/// takes several statements of each shard, which see one moment only in a transaction of their own.
fn insert_in_transaction(input: &Input<'_>, moved: Arc<InsertSelect>) -> Plan {
    match (input.session.in_transaction, &moved.answered) {
        (Transaction::Written, Answered::Streamed(_)) => Plan::InsertSelect(moved),
        (Transaction::Written, Answered::Gathered(gathered)) => Plan::Refuse(refusal(
            "own-writes",
            format!("INSERT of rows of several shards in a transaction that has written: {}", gathered.reason.text),
            "Commit first, or let each shard answer the query by itself: EXPLAIN (ROUTE) shows why it does not.",
        )),
        _ => in_transaction(input, Plan::InsertSelect(moved)),
    }
}

/// See [`Plan::Shard`].
fn is_detachable(input: &Input<'_>, statement: &Statement, shards: &Catalog) -> bool {
    let path = input.session.search_path;
    let relations = statement.reads.iter().flat_map(|name| names::candidates(name, shards, path));
    let of_views = relations.flat_map(|relation| functions::view_calls(relation, shards));
    statement.class == Class::Read
        && !statement.locks_rows
        && !statement.explain
        && statement.effects.is_empty()
        && statement.value_functions.is_empty()
        && functions::called(statement, shards, path)
            .into_iter()
            .chain(of_views)
            .all(|called| called.conduct <= Conduct::Stable && !functions::is_clock(&called.name))
}

/// Whether the statement names a sharded or reference table.
///
/// # Errors
/// It might reach one in a way that pgherd cannot follow.
fn touches(input: &Input<'_>, statement: &Statement) -> Result<bool, Refusal> {
    if !input.session.text_is_plain {
        return Err(refusal(
            "client-encoding",
            "a text in this client_encoding cannot be read safely in a database with sharded tables".into(),
            "Set client_encoding to UTF8.",
        ));
    }
    match statement.class {
        Class::Opaque => opaque(input, statement)?,
        Class::Ddl => mentioned::check(input, statement)?,
        Class::Utility if !statement.explain => mentioned::check(input, statement)?,
        Class::Session if !wrapped::is_cursor(statement) => {
            let hint = "Use the protocol's prepared statements instead.";
            named(input, statement, "PREPARE over a sharded or reference table", hint)?;
        }
        _ => {}
    }
    let mut distributed: Option<&Name> = None;
    let mut local: Option<&Name> = None;
    let reads_views = statement.explain || !matches!(statement.class, Class::Ddl | Class::Utility | Class::Opaque);
    for name in statement.reads.iter().chain(&statement.writes) {
        let found = match place(input, name) {
            Err(refusal) if refusal.code == "unknown-on-primary" => {
                let is_view = reads_views && !statement.writes.contains(name) && is_view_over_tables(input, name);
                if is_view && !is_hidden_elsewhere(input, name) { Place::Shards } else { return Err(refusal) }
            }
            found => found?,
        };
        match found {
            Place::Shards => distributed = distributed.or(Some(name)),
            Place::Primary => local = local.or(Some(name)),
            Place::Nowhere => {}
        }
    }
    match (distributed, local) {
        (Some(distributed), Some(local)) => Err(refusal(
            "mixed",
            format!("{} is on the shards and {} on the primary", names::display(distributed), names::display(local)),
            "Make the second a reference table, or ask for the two on their own.",
        )),
        (Some(_), None) => Ok(true),
        (None, _) => {
            user_functions(input, statement)?;
            Ok(false)
        }
    }
}

pub(super) enum Place {
    Shards,
    Primary,
    Nowhere,
}

/// Where the relation of that name is.
pub(super) fn place(input: &Input<'_>, name: &Name) -> Result<Place, Refusal> {
    let path = input.session.search_path;
    let on_primary = input.catalog.is_some_and(|catalog| !names::candidates(name, catalog, path).is_empty());
    let mut tables = input.database.tables.iter().filter(|table| *table.name == *name.name);
    let on_shards = match &name.schema {
        Some(schema) => tables.any(|table| *table.schema == **schema),
        // A schema that only the shards have is not in the path, which was resolved on the primary.
        None => {
            tables.any(|table| path.iter().any(|schema| **schema == *table.schema) || !exists(input, &table.schema))
        }
    };
    let is_found = on_shards || on_primary || on_shards_only(input, name);
    if name.schema.is_none() && !input.session.path_is_known && !is_found && is_called_like_ours(input, name) {
        return Err(refusal(
            "settings",
            format!(
                "whether {} is a table of the shards hangs on a search_path that is not known",
                names::display(name)
            ),
            "Write the table's schema, or send Sync behind what sets search_path.",
        ));
    }
    let temporary = name.schema.is_none() && input.session.has_temporary_objects;
    match (on_shards, on_primary) {
        (true, _) if temporary => Err(refusal(
            "ambiguous-name",
            format!("{} may be a sharded table or a temporary one", names::display(name)),
            "Write the table's schema.",
        )),
        (true, true) => Err(refusal(
            "ambiguous-name",
            format!("{} is a table of the shards, and there is one of that name on the primary", names::display(name)),
            "Write the table's schema, or drop the one on the primary.",
        )),
        (_, false) if is_hidden_elsewhere(input, name) => Err(refusal(
            "ambiguous-name",
            format!("{} is a relation of a schema that only the shards have", names::display(name)),
            "Write the table's schema, or create that schema on the primary as well.",
        )),
        (true, false) => Ok(Place::Shards),
        (false, true) => Ok(Place::Primary),
        (false, false) if on_shards_only(input, name) => Err(refusal(
            "unknown-on-primary",
            format!(
                "{} is on the shards, but not a sharded or reference table of the configuration",
                names::display(name)
            ),
            "Name the tables that it is made of, or add it to the configuration as a table.",
        )),
        (false, false) => Ok(Place::Nowhere),
    }
}

/// Whether any schema of the shards has a table of the configuration, or a view over such, by that name.
fn is_called_like_ours(input: &Input<'_>, name: &Name) -> bool {
    let is_table = |table: &Table| *table.name == *name.name;
    input.database.tables.iter().any(is_table) || is_view_of_shards(input, &name.name)
}

/// Views are made and dropped alone, and not as what the primary or a session has already: whoever reads them next must know of it.
fn ddl_of_views(input: &Input<'_>) -> Result<(), Refusal> {
    let scs = input.session.standard_conforming_strings;
    let made = distribute::created_view(input.text, scs);
    if made.is_none() && !distribute::drops_views(input.text, scs) {
        return Ok(());
    }
    if input.session.in_transaction != Transaction::Outside {
        let message = "a view over tables of the shards is made or dropped in a transaction of its own";
        return Err(refusal("ddl", message.into(), "Send it outside of a transaction."));
    }
    let Some(view) = made else { return Ok(()) };
    let is_temporary = |schema: &str| schema.starts_with("pg_temp");
    let path = input.session.search_path;
    if view.schema.as_deref().is_some_and(is_temporary) || path.iter().any(|schema| is_temporary(schema)) {
        let message = "a temporary view over tables of the shards";
        return Err(refusal("ddl", message.into(), "Leave pg_temp out of its name and of search_path."));
    }
    if matches!(place(input, &view), Ok(Place::Primary)) {
        let message = "a view over tables of the shards cannot be called as a relation of the primary";
        return Err(refusal("mixed", message.into(), "Give the view another name."));
    }
    Ok(())
}

/// Whether a schema that only the shards have, so that it is not known where in the path it stands, has another relation of an unqualified
/// name.
fn is_hidden_elsewhere(input: &Input<'_>, name: &Name) -> bool {
    let is_anywhere = name.schema.is_some() || input.database.schemas.is_some();
    let Some(shards) = input.shards.filter(|_| !is_anywhere) else { return false };
    let is_configured =
        |schema: &str| input.database.tables.iter().any(|table| *table.schema == *schema && *table.name == *name.name);
    shards
        .schemas
        .iter()
        .any(|schema| !exists(input, schema) && shards.relation(schema, &name.name).is_some() && !is_configured(schema))
}

/// Whether a name that the primary does not know means a view over the tables of the shards.
fn is_view_over_tables(input: &Input<'_>, name: &Name) -> bool {
    let path = input.session.search_path;
    let on_primary = input.catalog.is_some_and(|catalog| !names::candidates(name, catalog, path).is_empty());
    let temporary = name.schema.is_none() && input.session.has_temporary_objects;
    let is_view = |shards: &Catalog| {
        let found = names::candidates(name, shards, path);
        found.first().is_some_and(|relation| distribute::is_over_tables(relation, shards, input.database))
    };
    !on_primary && !temporary && input.shards.is_some_and(is_view)
}

/// Whether only the shards have a relation of that name: a view over sharded tables, or a table that nobody configured.
fn on_shards_only(input: &Input<'_>, name: &Name) -> bool {
    let found = input.shards.map(|catalog| names::candidates(name, catalog, input.session.search_path));
    found.is_some_and(|found| found.iter().any(|relation| !names::is_system(relation)))
}

fn exists(input: &Input<'_>, schema: &str) -> bool {
    input.catalog.is_some_and(|catalog| catalog.schemas.iter().any(|known| **known == *schema))
}

/// Refuses a statement that has the name of a distributed table among its identifiers.
fn named(input: &Input<'_>, statement: &Statement, what: &str, hint: &str) -> Result<(), Refusal> {
    let mut tables = input.database.tables.iter();
    match tables.find(|table| statement.identifiers.iter().any(|identifier| **identifier == *table.name)) {
        Some(table) => Err(refusal("names-shards", format!("{what}: {}.{}", table.schema, table.name), hint)),
        None => match statement.identifiers.iter().find(|identifier| is_view_of_shards(input, identifier)) {
            Some(view) => Err(refusal("names-shards", format!("{what}, by the view {view}"), hint)),
            None => Ok(()),
        },
    }
}

/// Whether any schema of the shards has a view over the configuration's tables by that name.
fn is_view_of_shards(input: &Input<'_>, name: &str) -> bool {
    let Some(shards) = input.shards.filter(|shards| shards.has_views) else { return false };
    let found = shards.schemas.iter().filter_map(|schema| shards.relation(schema, name));
    found.into_iter().any(|relation| distribute::is_over_tables(relation, shards, input.database))
}

/// DO, CALL, EXECUTE and what could not be read: neither may it name a distributed table, nor call code that could.
fn opaque(input: &Input<'_>, statement: &Statement) -> Result<(), Refusal> {
    let hint = "Write it as a plain statement, or run it on the servers themselves.";
    named(input, statement, "a statement that pgherd cannot read names a sharded or reference table", hint)?;
    for identifier in &statement.identifiers {
        let functions = input.catalog.and_then(|catalog| catalog.functions.get(identifier));
        let mut unseen = functions.into_iter().flatten().filter(|function| function.user_defined);
        if unseen.any(|function| function.volatility == crate::catalog::model::Volatility::Volatile)
            && !is_declared(input, identifier)
        {
            return Err(user_function(identifier));
        }
    }
    Ok(())
}

/// Refuses volatile functions of a user's: they may read or write sharded tables unseen.
fn user_functions(input: &Input<'_>, statement: &Statement) -> Result<(), Refusal> {
    let runs = !matches!(statement.class, Class::Ddl | Class::Utility | Class::Opaque);
    let Some(catalog) = input.catalog.filter(|_| runs) else { return Ok(()) };
    let called = functions::called(statement, catalog, input.session.search_path);
    let unseen = called
        .iter()
        .find(|called| called.user_defined && called.conduct == Conduct::Volatile && !is_declared(input, &called.name));
    match unseen {
        Some(called) => Err(user_function(&called.name)),
        None => Ok(()),
    }
}

fn user_function(name: &str) -> Refusal {
    refusal(
        "user-function",
        format!("the function {name} could reach sharded tables"),
        "Declare it in fanout.pure_functions if it does not.",
    )
}

/// Whether `fanout.pure_functions` has a function of that name, in any schema and with any arguments.
fn is_declared(input: &Input<'_>, name: &str) -> bool {
    input.fanout.pure_functions.iter().any(|declared| {
        let bare = declared.split_once('(').map_or(declared.as_str(), |(bare, _)| bare);
        bare.rsplit_once('.').map_or(bare, |(_, last)| last) == name
    })
}
