//! Which functions a statement over shards may call.

use crate::catalog::model::{Catalog, Function, FunctionKind, Oid, Volatility};
use crate::config::names;
use crate::plan::{Refusal, shard_key};

use super::refuse::refuse;

/// STABLE functions of `pg_catalog` whose results hang only on their arguments and on settings that all legs share.
const SHARED_STABLE: &[&str] = &[
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "date",
    "date_part",
    "date_trunc",
    "extract",
    "format",
    "generate_series",
    "jsonb_build_array",
    "jsonb_build_object",
    "json_build_array",
    "json_build_object",
    "make_timestamptz",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "timestamptz",
    "timezone",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
    "to_tsvector",
    "to_tsquery",
    "plainto_tsquery",
    "timestamp",
    "time",
    "text",
    "date_bin",
    "numeric",
    "overlaps",
    "array_append",
];

/// Functions that act on one server's own state: wrong even where the statement runs on a single shard.
const SERVER_BOUND: &[&str] = &[
    "nextval",
    "currval",
    "lastval",
    "setval",
    "set_config",
    "setseed",
    "pg_export_snapshot",
    "pg_notify",
    "txid_current",
    "pg_current_xact_id",
    "dblink",
    "query_to_xml",
    "table_to_xml",
    "cursor_to_xml",
    "schema_to_xml",
    "database_to_xml",
    "lo_import",
];

/// Functions of `pg_catalog` that return sets and may be called on shards.
const SET_RETURNING: &[&str] = &[
    "unnest",
    "generate_series",
    "generate_subscripts",
    "regexp_matches",
    "regexp_split_to_table",
    "string_to_table",
    "json_each",
    "json_each_text",
    "jsonb_each",
    "jsonb_each_text",
    "json_array_elements",
    "json_array_elements_text",
    "jsonb_array_elements",
    "jsonb_array_elements_text",
    "json_object_keys",
    "jsonb_object_keys",
    "json_populate_recordset",
    "jsonb_populate_recordset",
    "json_to_recordset",
    "jsonb_to_recordset",
    "jsonb_path_query",
    "jsonb_path_query_tz",
    "aclexplode",
    "ts_parse",
    "ts_token_type",
    "ts_debug",
    "ts_stat",
    "_pg_expandarray",
];

/// What a statement that calls a function may still be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fitness {
    /// The same on every shard: it may be streamed.
    Everywhere,
    /// Right on one server only.
    OneShard,
}

/// Judges functions by the catalog and the configured pure ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct Functions<'a> {
    pub(super) catalog: &'a Catalog,
    pub(super) pure_functions: &'a [String],
}

impl Functions<'_> {
    fn candidates(&self, schema: Option<&str>, name: &str) -> Vec<&Function> {
        let of_schema = |function: &&Function| schema.is_none_or(|schema| *function.schema == *schema);
        self.catalog.functions.get(name).into_iter().flatten().filter(of_schema).collect()
    }

    /// How a call of that many arguments may be used.
    ///
    /// # Errors
    /// A function that is unknown, made by a user and not declared pure, or bound to one server's state.
    pub(super) fn judge(&self, schema: Option<&str>, name: &str, arguments: usize) -> Result<Fitness, Refusal> {
        let shown = schema.map_or_else(|| name.to_owned(), |schema| format!("{schema}.{name}"));
        let is_server_bound =
            SERVER_BOUND.contains(&name) || name.starts_with("pg_advisory") || name.starts_with("pg_try_advisory");
        if is_server_bound || name.starts_with("lo_") || name.starts_with("dblink") {
            let message =
                format!("function {shown}() acts on one server's own state and is not supported on sharded data");
            return Err(refuse(
                "server-function",
                message,
                "call it in a statement that names no sharded or reference table",
            ));
        }
        let candidates = self.candidates(schema, name);
        if candidates.is_empty() {
            return Err(self.impure(&shown, "is not known to pgherd"));
        }
        let is_strange = |function: &&Function| {
            let computes = function.of_contrib && function.volatility == Volatility::Immutable;
            function.user_defined && !computes && !self.is_declared_pure(function, name)
        };
        if candidates.iter().any(is_strange) {
            return Err(
                self.impure(&shown, "is made by a user and could reach other shards' data or depend on the server")
            );
        }
        let volatility =
            candidates.iter().filter(|function| !function.user_defined).map(|function| function.volatility).max();
        let is_shared = match volatility {
            None | Some(Volatility::Immutable) => true,
            // Aggregates are STABLE for the settings that their results' text form reads.
            Some(Volatility::Stable) => {
                SHARED_STABLE.contains(&name) || (name == "age" && arguments == 2) || self.is_aggregate(schema, name)
            }
            Some(Volatility::Volatile) => false,
        };
        Ok(if is_shared { Fitness::Everywhere } else { Fitness::OneShard })
    }

    fn impure(&self, shown: &str, why: &str) -> Refusal {
        let hint = format!("if it reads and changes nothing, add \"{shown}(...)\" to fanout.pure_functions");
        refuse("function", format!("function {shown}() {why}: not supported on sharded data"), hint)
    }

    /// Whether `pure_functions` lists it, as `schema.name(type, ...)`.
    fn is_declared_pure(&self, function: &Function, name: &str) -> bool {
        let full = format!("{}.{}", function.schema, name);
        let is_listed = |declared: &String| {
            let Some((listed, arguments)) = declared.split_once('(') else { return declared.trim() == full };
            let arguments: Vec<&str> =
                arguments.trim_end_matches(')').split(',').map(str::trim).filter(|text| !text.is_empty()).collect();
            listed.trim() == full
                && arguments.len() == function.arguments.len()
                && arguments.iter().zip(&function.arguments).all(|(text, &oid)| self.is_type(text, oid))
        };
        self.pure_functions.iter().any(is_listed)
    }

    /// Whether `pure_functions` lists the function of a trigger, as `schema.name()`.
    pub(super) fn is_declared_trigger(&self, schema: &str, name: &str) -> bool {
        let is_listed = |declared: &String| {
            let (listed, arguments) = declared.split_once('(').unwrap_or((declared, ")"));
            let listed = names::qualified(listed).ok();
            let is_it = listed.is_some_and(|(of, listed)| of.is_none_or(|of| of == schema) && listed == name);
            is_it && arguments.trim_end_matches(')').trim().is_empty()
        };
        self.pure_functions.iter().any(is_listed)
    }

    fn is_type(&self, text: &str, oid: Oid) -> bool {
        let internal = match text {
            "integer" | "int" => "int4",
            "bigint" => "int8",
            "smallint" => "int2",
            "boolean" => "bool",
            "real" => "float4",
            "double precision" => "float8",
            "decimal" => "numeric",
            "character varying" => "varchar",
            "character" | "char" => "bpchar",
            "timestamp without time zone" => "timestamp",
            "timestamp with time zone" => "timestamptz",
            other => other,
        };
        let known = self.catalog.types.get(&oid);
        known.is_some_and(|known| *known.name == *internal || format!("{}.{}", known.schema, known.name) == internal)
    }

    /// Whether the name is an aggregate's.
    pub(super) fn is_aggregate(&self, schema: Option<&str>, name: &str) -> bool {
        self.candidates(schema, name).iter().any(|function| function.kind == FunctionKind::Aggregate)
    }

    /// Whether a call can give several rows for one; of a user's function that is not known.
    pub(super) fn may_return_set(&self, schema: Option<&str>, name: &str) -> bool {
        SET_RETURNING.contains(&name) || !self.is_built_in(schema, name)
    }

    /// Whether a call can give a text a collation of its own: that of a domain which it returns.
    pub(super) fn may_collate(&self, schema: Option<&str>, name: &str) -> bool {
        let results = self.candidates(schema, name).into_iter().map(|function| function.result);
        let mut known = results.map(|result| self.catalog.types.get(&result).map(|it| it.collation));
        known.any(|collation| collation.is_none_or(|it| shard_key::brings_collation(it, self.catalog)))
    }

    /// Whether the name can only mean PostgreSQL's own function.
    pub(super) fn is_built_in(&self, schema: Option<&str>, name: &str) -> bool {
        self.candidates(schema, name).iter().all(|function| !function.user_defined)
    }

    /// Whether an operator of that name was made by a user and is not immutable.
    pub(super) fn is_risky_operator(&self, name: &str) -> bool {
        let user = self.catalog.user_operators.get(name);
        user.is_some_and(|all| all.iter().any(|&volatility| volatility != Volatility::Immutable))
    }
}
