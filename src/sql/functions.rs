//! Names that PostgreSQL gives a meaning: aggregates, functions that change the session, functions without parentheses.

use super::facts::Effect;

/// Whether PostgreSQL has an aggregate of that name. A guess about the shape only: what a function may do is the catalog's to say.
pub(super) fn is_aggregate(name: &str) -> bool {
    matches!(
        name,
        "any_value"
            | "array_agg"
            | "avg"
            | "bit_and"
            | "bit_or"
            | "bit_xor"
            | "bool_and"
            | "bool_or"
            | "corr"
            | "count"
            | "covar_pop"
            | "covar_samp"
            | "cume_dist"
            | "dense_rank"
            | "every"
            | "grouping"
            | "json_agg"
            | "json_agg_strict"
            | "json_arrayagg"
            | "json_object_agg"
            | "json_objectagg"
            | "jsonb_agg"
            | "jsonb_agg_strict"
            | "jsonb_object_agg"
            | "max"
            | "min"
            | "mode"
            | "percent_rank"
            | "percentile_cont"
            | "percentile_disc"
            | "range_agg"
            | "range_intersect_agg"
            | "rank"
            | "stddev"
            | "stddev_pop"
            | "stddev_samp"
            | "string_agg"
            | "sum"
            | "var_pop"
            | "var_samp"
            | "variance"
            | "xmlagg"
    ) || name.starts_with("regr_")
}

/// What calling a function does to the session; `set_config` is read with its arguments, elsewhere.
pub(super) fn effect(name: &str) -> Option<Effect> {
    match name {
        "pg_advisory_lock" | "pg_advisory_lock_shared" | "pg_try_advisory_lock" | "pg_try_advisory_lock_shared" => {
            Some(Effect::AdvisoryLock)
        }
        "pg_advisory_unlock" | "pg_advisory_unlock_shared" | "pg_advisory_unlock_all" => Some(Effect::AdvisoryUnlock),
        "currval" | "lastval" => Some(Effect::SequenceState),
        "pg_prepared_statement" | "pg_prepared_statements" => Some(Effect::StatementsShown),
        "pg_listening_channels" => Some(Effect::ListeningShown),
        "setseed"
        | "pg_export_snapshot"
        | "pg_backup_start"
        | "pg_start_backup"
        | "pg_backup_stop"
        | "pg_stop_backup"
        | "pg_replication_origin_session_setup"
        | "pg_replication_origin_xact_setup"
        | "pg_logical_slot_get_changes" => Some(Effect::ServerState),
        "lo_open" | "lo_creat" | "lo_create" | "lo_close" | "loread" | "lowrite" | "lo_lseek" | "lo_lseek64"
        | "lo_tell" | "lo_tell64" | "lo_truncate" | "lo_truncate64" | "lo_import" | "lo_export" => {
            Some(Effect::ServerState)
        }
        "dblink_connect" | "dblink_connect_u" | "dblink_disconnect" | "dblink_open" | "dblink_close"
        | "dblink_send_query" => Some(Effect::ServerState),
        "pg_create_physical_replication_slot" | "pg_create_logical_replication_slot" => Some(Effect::ServerState),
        _ => None,
    }
}

/// Whether the unquoted word is a function that the grammar calls without parentheses.
pub(super) fn is_value_function(name: &str) -> bool {
    matches!(
        name,
        "current_catalog"
            | "current_date"
            | "current_role"
            | "current_schema"
            | "current_time"
            | "current_timestamp"
            | "current_user"
            | "localtime"
            | "localtimestamp"
            | "session_user"
            | "system_user"
            | "user"
    )
}

/// Columns that every table has and no row stores.
pub(super) fn is_system_column(name: &str) -> bool {
    matches!(name, "ctid" | "xmin" | "xmax" | "cmin" | "cmax" | "tableoid")
}

/// Reserved words (manual, appendix C): unquoted, they are never the name of a column, table or alias.
pub(super) fn is_reserved(word: &str) -> bool {
    const WORDS: &[&str] = &[
        "all",
        "analyse",
        "analyze",
        "and",
        "any",
        "array",
        "as",
        "asc",
        "asymmetric",
        "both",
        "case",
        "cast",
        "check",
        "collate",
        "column",
        "constraint",
        "create",
        "deferrable",
        "desc",
        "distinct",
        "do",
        "else",
        "end",
        "except",
        "false",
        "fetch",
        "for",
        "foreign",
        "from",
        "grant",
        "group",
        "having",
        "in",
        "initially",
        "intersect",
        "into",
        "lateral",
        "leading",
        "limit",
        "not",
        "null",
        "offset",
        "on",
        "only",
        "or",
        "order",
        "placing",
        "primary",
        "references",
        "returning",
        "select",
        "some",
        "symmetric",
        "table",
        "then",
        "to",
        "trailing",
        "true",
        "union",
        "unique",
        "using",
        "variadic",
        "when",
        "where",
        "window",
        "with",
    ];
    WORDS.binary_search(&word).is_ok()
}

/// Words that may name functions and types but, unquoted, never a table or an alias.
pub(super) fn is_no_table(word: &str) -> bool {
    const WORDS: &[&str] = &[
        "authorization",
        "binary",
        "collation",
        "concurrently",
        "cross",
        "default",
        "freeze",
        "full",
        "ilike",
        "inner",
        "is",
        "isnull",
        "join",
        "left",
        "like",
        "natural",
        "notnull",
        "outer",
        "overlaps",
        "right",
        "similar",
        "tablesample",
        "verbose",
    ];
    WORDS.binary_search(&word).is_ok() || is_reserved(word) || (is_value_function(word) && word != "current_schema")
}

/// Operators whose built-in meaning everybody knows; the planner looks at every other one.
pub(super) fn is_usual_operator(text: &str) -> bool {
    const USUAL: &[&str] = &[
        "+", "-", "*", "/", "%", "^", "=", "<>", "!=", "<", ">", "<=", ">=", "||", "~", "~*", "!~", "!~*", "~~", "~~*",
        "!~~", "!~~*", "=>",
    ];
    USUAL.contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_lists_are_sorted_as_binary_search_needs() {
        for word in ["all", "with", "lateral", "only", "window", "on"] {
            assert!(is_reserved(word), "{word}");
        }
        for word in ["authorization", "verbose", "natural", "left", "cross", "user"] {
            assert!(is_no_table(word), "{word}");
        }
        assert!(!is_reserved("orders") && !is_no_table("orders"));
    }
}
