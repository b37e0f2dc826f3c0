//! Looks at every token of a statement that is to run on the coordinator: nothing in it may reach beyond the shipped rows.

use super::functions::Functions;
use super::refuse::refuse;
use super::source::Source;
use crate::catalog::model::{Catalog, Oid};
use crate::plan::Refusal;

/// Columns that PostgreSQL gives every table: rows get other ones when they are shipped.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// Types that name objects of one server.
const NAMES_OF_OBJECTS: [&str; 9] = [
    "regclass",
    "regproc",
    "regprocedure",
    "regoper",
    "regoperator",
    "regtype",
    "regrole",
    "regnamespace",
    "regcollation",
];

/// Words that write, lock or sample, or name tables where the walk does not look.
const WORDS: [&str; 7] = ["insert", "update", "delete", "merge", "into", "tablesample", "only"];

/// Functions that tell of one server, database or statement.
const OF_ONE_SERVER: [&str; 12] = [
    "current_database",
    "current_query",
    "current_schemas",
    "inet_client_addr",
    "inet_client_port",
    "inet_server_addr",
    "inet_server_port",
    "row_security_active",
    "obj_description",
    "col_description",
    "shobj_description",
    "version",
];

/// Functions of that sort of name that do not.
const HARMLESS: [&str; 3] = ["pg_sleep", "pg_typeof", "pg_lsn"];

/// Whether nothing in the text can mean another thing on the coordinator than it would on one PostgreSQL with all rows.
///
/// # Errors
/// The first thing that can.
pub(super) fn check(source: &Source<'_>, functions: Functions<'_>, coordinator: &Catalog) -> Result<(), Refusal> {
    if functions.catalog.has_user_casts && !coordinator.has_user_casts || functions.catalog.has_impure_user_casts {
        return Err(refuse(
            "cast",
            "casts that users made and the coordinator lacks, or that are not immutable",
            "drop them",
        ));
    }
    for place in 0..source.len() {
        let Some(name) = source.name_at(place) else {
            operator(source.operator_at(place), functions, coordinator)?;
            continue;
        };
        let is_bare = source.is_bare(place);
        if SYSTEM_COLUMNS.contains(&&*name) {
            let message = format!("system column {name} differs from shard to shard");
            return Err(refuse("system-column", message, "leave it out, or tie the statement to one shard key"));
        }
        if NAMES_OF_OBJECTS.contains(&&*name) {
            let message = format!("{name} names an object of one server");
            return Err(refuse("cast", message, "leave it out, or tie the statement to one shard key"));
        }
        if is_bare && WORDS.contains(&&*name) && !source.is_rows_only(place) {
            let message = format!("{} in a statement over several shards", name.to_uppercase());
            let code = match &*name {
                "tablesample" => "tablesample",
                "only" => "only",
                _ => "statement",
            };
            return Err(refuse(code, message, "leave it out, or tie the statement to one shard key"));
        }
        if is_bare && name == "current_catalog" {
            return Err(of_one_server(&name));
        }
        if source.is_call(place) {
            function(source.schema_at(place).as_deref(), &name, functions, coordinator)?;
        }
    }
    Ok(())
}

fn operator(name: Option<&str>, functions: Functions<'_>, coordinator: &Catalog) -> Result<(), Refusal> {
    let Some(name) = name.filter(|name| functions.catalog.user_operators.contains_key(*name)) else { return Ok(()) };
    if functions.is_risky_operator(name) || !coordinator.user_operators.contains_key(name) {
        let message = format!("operator {name} is made by a user, and not immutable or not on the coordinator");
        return Err(refuse("operator", message, "use a built-in operator"));
    }
    Ok(())
}

fn of_one_server(name: &str) -> Refusal {
    refuse(
        "server-function",
        format!("{name} tells of one server's own state and is not supported on sharded data"),
        "call it in a statement that names no sharded or reference table",
    )
}

/// Judges a name with a parenthesis behind it: a function, or a keyword, a type or an alias that functions may share it with.
fn function(schema: Option<&str>, name: &str, functions: Functions<'_>, coordinator: &Catalog) -> Result<(), Refusal> {
    let known = functions.catalog.functions.get(name);
    let candidates: Vec<_> = known
        .into_iter()
        .flatten()
        .filter(|function| schema.is_none_or(|schema| *function.schema == *schema))
        .collect();
    if candidates.is_empty() {
        // No function of the shards: if it is meant as one, shard 0 says that there is none.
        return Ok(());
    }
    functions.judge(schema, name, 0)?;
    let is_of_server = OF_ONE_SERVER.contains(&name)
        || (name.starts_with("pg_") && !HARMLESS.contains(&name))
        || name.starts_with("has_")
        || name.starts_with("to_reg")
        || name.starts_with("txid_")
        || name.starts_with("binary_upgrade")
        || candidates.iter().all(|function| !function.user_defined && takes_objects(&function.arguments));
    if is_of_server && candidates.iter().any(|function| !function.user_defined) {
        return Err(of_one_server(&format!("function {name}()")));
    }
    let is_there = |function: &&&crate::catalog::model::Function| {
        coordinator.functions.get(name).into_iter().flatten().any(|own| {
            own.schema == function.schema
                && own.kind == function.kind
                && own.arguments.len() == function.arguments.len()
        })
    };
    match candidates.iter().filter(|function| function.user_defined).find(|function| !is_there(function)) {
        None => Ok(()),
        Some(function) => Err(refuse(
            "coordinator",
            format!("the coordinator does not have the function {}.{name}()", function.schema),
            "create it there as it is on the shards",
        )),
    }
}

/// Whether an argument is an oid or the name of an object.
fn takes_objects(arguments: &[Oid]) -> bool {
    const OIDS: [Oid; 11] = [24, 26, 2202, 2203, 2204, 2205, 2206, 4089, 4096, 4191, 1033];
    arguments.iter().any(|argument| OIDS.contains(argument))
}
