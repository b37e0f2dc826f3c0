//! What the functions, operators and casts of a statement may do, as far as the catalog says.

use crate::catalog::model::{Catalog, Function, Oid, Relation, Volatility};
use crate::sql::facts::{Name, Statement};

/// What calling a name may do: the worst of everything that the name could mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Conduct {
    /// Same arguments, same result.
    Pure,
    /// Depends on settings that the cache's key holds, and on nothing else.
    Keyed,
    /// Depends on more than that, but is read only.
    Stable,
    /// Volatile, but writes no table of a user's: `random()`, `nextval()`, `pg_sleep()`.
    Harmless,
    /// May do anything.
    Volatile,
}

/// A name and its conduct, for the reason that people read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) name: Box<str>,
    pub(crate) conduct: Conduct,
    pub(crate) user_defined: bool,
    pub(crate) security_definer: bool,
}

/// Everything that a statement calls: functions, row functions written as fields, user-defined operators.
pub(crate) fn called(statement: &Statement, catalog: &Catalog, search_path: &[Box<str>]) -> Vec<Called> {
    let mut all: Vec<Called> = statement.functions.iter().map(|name| function(name, catalog, search_path)).collect();
    for field in &statement.fields {
        let name = Name::bare(field);
        let candidates = overloads(&name, catalog, search_path).filter(|f| takes_a_row(f, catalog));
        all.extend(worst(field, candidates));
    }
    for (name, volatilities) in &catalog.user_operators {
        let worst = volatilities.iter().max().copied().unwrap_or(Volatility::Immutable);
        if worst > Volatility::Immutable && (is_usual(name) || statement.operators.contains(name)) {
            let conduct = if worst == Volatility::Stable { Conduct::Stable } else { Conduct::Volatile };
            all.push(Called { name: name.clone(), conduct, user_defined: true, security_definer: false });
        }
    }
    all
}

/// What a view's definition calls, by oid.
pub(crate) fn view_calls(relation: &Relation, catalog: &Catalog) -> Vec<Called> {
    relation.view_functions.iter().map(|&oid| of_oid(oid, catalog)).collect()
}

/// The function of that oid; one that is not known may do anything.
pub(crate) fn of_oid(oid: Oid, catalog: &Catalog) -> Called {
    let found = catalog.function_names.get(&oid).and_then(|name| {
        let one = catalog.functions.get(name)?.iter().filter(|function| function.oid == oid);
        worst(name, one)
    });
    found.unwrap_or_else(|| unknown("a function that is not known"))
}

/// What `name` may mean when it is called.
fn function(name: &Name, catalog: &Catalog, search_path: &[Box<str>]) -> Called {
    match worst(&name.name, overloads(name, catalog, search_path)) {
        Some(called) => called,
        // Spelled as functions by the grammar alone; every one of them is immutable or keyed.
        None if name.schema.is_none() && is_grammar(&name.name) => {
            Called { name: name.name.clone(), conduct: Conduct::Keyed, user_defined: false, security_definer: false }
        }
        None => unknown(&name.name),
    }
}

fn unknown(name: &str) -> Called {
    Called { name: name.into(), conduct: Conduct::Volatile, user_defined: true, security_definer: false }
}

fn overloads<'a>(
    name: &'a Name,
    catalog: &'a Catalog,
    search_path: &'a [Box<str>],
) -> impl Iterator<Item = &'a Function> {
    let all = catalog.functions.get(&name.name).map(Vec::as_slice).unwrap_or_default();
    all.iter().filter(move |function| match &name.schema {
        Some(schema) => function.schema == *schema,
        None => search_path.contains(&function.schema),
    })
}

fn worst<'a>(name: &str, candidates: impl Iterator<Item = &'a Function>) -> Option<Called> {
    candidates
        .map(|function| Called {
            name: name.into(),
            conduct: conduct(name, function),
            user_defined: function.user_defined,
            security_definer: function.security_definer,
        })
        .reduce(|a, b| Called {
            name: a.name,
            conduct: a.conduct.max(b.conduct),
            user_defined: a.user_defined || b.user_defined,
            security_definer: a.security_definer || b.security_definer,
        })
}

fn conduct(name: &str, function: &Function) -> Conduct {
    match function.volatility {
        Volatility::Immutable => Conduct::Pure,
        Volatility::Stable if !function.user_defined && is_keyed(name) => Conduct::Keyed,
        Volatility::Stable => Conduct::Stable,
        Volatility::Volatile if !function.user_defined && is_harmless(name) => Conduct::Harmless,
        Volatility::Volatile => Conduct::Volatile,
    }
}

/// Whether `row.name` may call it: one argument that is a row or anything at all.
fn takes_a_row(function: &Function, catalog: &Catalog) -> bool {
    let [argument] = function.arguments.as_slice() else { return false };
    // record, "any", anyelement, anynonarray, anycompatible
    matches!(argument, 2249 | 2276 | 2283 | 2776 | 5077)
        || catalog.types.get(argument).is_none_or(|found| found.kind == 'c')
}

/// Operators that every statement may use without being noticed: see `Statement::operators`.
fn is_usual(name: &str) -> bool {
    matches!(
        name,
        "+" | "-"
            | "*"
            | "/"
            | "%"
            | "^"
            | "="
            | "<>"
            | "<"
            | ">"
            | "<="
            | ">="
            | "||"
            | "~"
            | "~*"
            | "!~"
            | "!~*"
            | "~~"
            | "~~*"
            | "!~~"
            | "!~~*"
    )
}

/// PostgreSQL's own operators, outside the usual ones, whose functions are immutable or keyed. `@@` is not among them: with texts it
/// reads `default_text_search_config`.
pub(crate) fn is_known_operator(name: &str) -> bool {
    matches!(
        name,
        "->" | "->>"
            | "#>"
            | "#>>"
            | "#-"
            | "@>"
            | "<@"
            | "?"
            | "?|"
            | "?&"
            | "@?"
            | "&&"
            | "<<"
            | ">>"
            | "&"
            | "|"
            | "#"
            | "@"
            | "|/"
            | "||/"
            | "!!"
            | "^@"
            | "-|-"
            | "<->"
            | "&<"
            | "&>"
            | "<<="
            | ">>="
            | "<<|"
            | "|>>"
            | "&<|"
            | "|&>"
            | "<^"
            | ">^"
            | "?#"
            | "?-"
            | "?||"
            | "?-|"
            | "@-@"
            | "##"
            | "~="
            | "~>=~"
            | "~<=~"
            | "~>~"
            | "~<~"
            | "*="
            | "*<>"
    )
}

/// What the grammar spells like a function without there being one in the catalog (in this version or any).
fn is_grammar(name: &str) -> bool {
    matches!(
        name,
        "coalesce"
            | "nullif"
            | "greatest"
            | "least"
            | "grouping"
            | "row"
            | "extract"
            | "normalize"
            | "is_normalized"
            | "position"
            | "overlay"
            | "substring"
            | "ceil"
            | "json_array"
            | "json_object"
            | "json_arrayagg"
            | "json_objectagg"
            | "json_scalar"
            | "json_exists"
            | "xmlconcat"
            | "xmlforest"
            | "xmlelement"
    )
}

/// STABLE functions of PostgreSQL's whose inputs, beyond their arguments, are settings of the cache's key, the role, the database, or the
/// catalog itself (DDL raises the database's epoch).
fn is_keyed(name: &str) -> bool {
    matches!(
        name,
        "array_to_json" | "array_to_string" | "concat" | "concat_ws" | "current_catalog" | "current_database"
            | "current_schema" | "current_schemas" | "current_user" | "date" | "date_part" | "date_trunc" | "date_bin"
            | "date_add" | "date_subtract" | "enum_first" | "enum_last" | "enum_range" | "extract" | "format"
            | "generate_series" | "json_agg" | "json_agg_strict" | "json_build_array" | "json_build_object"
            | "json_object_agg" | "json_object_agg_strict" | "json_object_agg_unique" | "json_object_agg_unique_strict"
            | "jsonb_agg" | "jsonb_agg_strict" | "jsonb_build_array" | "jsonb_build_object" | "jsonb_object_agg"
            | "jsonb_object_agg_strict" | "jsonb_object_agg_unique" | "jsonb_object_agg_unique_strict"
            | "jsonb_path_exists_tz" | "jsonb_path_match_tz" | "jsonb_path_query_array_tz" | "jsonb_path_query_first_tz"
            | "jsonb_path_query_tz" | "make_timestamptz" | "overlaps" | "pg_typeof" | "quote_literal" | "quote_nullable"
            | "row_to_json" | "string_agg" | "text" | "time" | "timestamp" | "timestamptz" | "timezone" | "to_char"
            | "to_date" | "to_json" | "to_jsonb" | "to_number" | "to_timestamp" | "user"
            // Functions behind operators and casts of views: they read TimeZone, DateStyle, IntervalStyle or nothing.
            | "anytextcat" | "textanycat" | "interval_pl_timestamptz" | "timestamptz_pl_interval" | "timestamptz_mi_interval"
            | "date_eq_timestamptz" | "date_ne_timestamptz" | "date_lt_timestamptz" | "date_le_timestamptz"
            | "date_gt_timestamptz" | "date_ge_timestamptz" | "timestamptz_eq_date" | "timestamptz_ne_date"
            | "timestamptz_lt_date" | "timestamptz_le_date" | "timestamptz_gt_date" | "timestamptz_ge_date"
            | "timestamp_eq_timestamptz" | "timestamp_ne_timestamptz" | "timestamp_lt_timestamptz"
            | "timestamp_le_timestamptz" | "timestamp_gt_timestamptz" | "timestamp_ge_timestamptz"
            | "timestamptz_eq_timestamp" | "timestamptz_ne_timestamp" | "timestamptz_lt_timestamp"
            | "timestamptz_le_timestamp" | "timestamptz_gt_timestamp" | "timestamptz_ge_timestamp"
    )
}

/// STABLE functions of PostgreSQL's that answer the same on a replica as on the primary, to the clock's precision.
pub(crate) fn is_clock(name: &str) -> bool {
    matches!(name, "now" | "transaction_timestamp" | "statement_timestamp" | "age")
}

/// VOLATILE functions of PostgreSQL's that write no table: not even through SQL that they are handed.
fn is_harmless(name: &str) -> bool {
    const PREFIXES: [&str; 7] =
        ["pg_advisory_", "pg_try_advisory_", "pg_stat_", "pg_sleep", "pg_ls_", "pg_show_", "txid_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || matches!(
            name,
            "bernoulli"
                | "clock_timestamp"
                | "currval"
                | "gen_random_uuid"
                | "lastval"
                | "nextval"
                | "pg_backend_pid"
                | "pg_cancel_backend"
                | "pg_column_size"
                | "pg_current_xact_id"
                | "pg_current_xact_id_if_assigned"
                | "pg_current_wal_lsn"
                | "pg_database_size"
                | "pg_export_snapshot"
                | "pg_indexes_size"
                | "pg_is_in_recovery"
                | "pg_last_wal_receive_lsn"
                | "pg_last_wal_replay_lsn"
                | "pg_lock_status"
                | "pg_notify"
                | "pg_reload_conf"
                | "pg_relation_size"
                | "pg_table_size"
                | "pg_tablespace_size"
                | "pg_terminate_backend"
                | "pg_timezone_names"
                | "pg_total_relation_size"
                | "pg_xact_status"
                | "random"
                | "random_normal"
                | "set_config"
                | "setseed"
                | "setval"
                | "system"
                | "timeofday"
                | "uuidv4"
                | "uuidv7"
        )
}
