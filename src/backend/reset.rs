//! Bringing a server connection's session to a known state: applying a difference, reading back, and starting over.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::pool::Baseline;
use super::server::ServerConn;
use super::settings::{Settings, SharedSettings, is_reported, literal};
use crate::error::Error;

/// Settings that decide what a query returns or how it is shown; they are part of every cache key.
pub const RESULT_SETTINGS: [&str; 29] = [
    "array_nulls",
    "backslash_quote",
    "bytea_output",
    "client_encoding",
    "datestyle",
    "default_text_search_config",
    "default_toast_compression",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "enable_partition_pruning",
    "escape_string_warning",
    "extra_float_digits",
    "gin_fuzzy_search_limit",
    "intervalstyle",
    "lc_messages",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lo_compat_privileges",
    "operator_precedence_warning",
    "quote_all_identifiers",
    "row_security",
    "search_path",
    "session_replication_role",
    "standard_conforming_strings",
    "timezone",
    "transform_null_equals",
    "xmlbinary",
    "xmloption",
];

/// Of these, those that decide what rows say, and which names are found.
pub const ANSWERING_SETTINGS: [&str; 17] = [
    "array_nulls",
    "bytea_output",
    "datestyle",
    "default_text_search_config",
    "extra_float_digits",
    "intervalstyle",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "row_security",
    "search_path",
    "session_replication_role",
    "standard_conforming_strings",
    "timezone",
    "transform_null_equals",
    "xmlbinary",
    "xmloption",
];

/// Reads what a fresh login has; one round trip.
///
/// # Errors
/// The server failed.
pub async fn read_baseline(server: &mut ServerConn) -> Result<Baseline, Error> {
    let names: Vec<String> = RESULT_SETTINGS.iter().map(|name| literal(name)).collect();
    let sql = format!(
        "SELECT pg_catalog.lower(name), setting FROM pg_catalog.pg_settings WHERE pg_catalog.lower(name) IN ({}) \
         UNION ALL SELECT '', pg_catalog.pg_postmaster_start_time()::pg_catalog.text \
         UNION ALL SELECT '#', (pg_catalog.floor(EXTRACT(EPOCH FROM backend_start) * 1000000)::pg_catalog.int8)::pg_catalog.text \
         FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid() \
         UNION ALL SELECT '@', coalesce(pg_catalog.string_agg(s.setconfig::pg_catalog.text, ' ' ORDER BY s.setdatabase, s.setrole), '') \
         FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase IN \
         (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())) \
         AND s.setrole IN (0, (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user))",
        names.join(",")
    );
    let mut baseline = Baseline { parameters: server.parameters.clone(), ..Baseline::default() };
    for row in server.run(&sql).await? {
        match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(name), Some(started)]) if name.is_empty() => baseline.server_started = started,
            Ok([Some(name), Some(started)]) if name == "#" => {
                server.backend_start_us = started.parse().unwrap_or_default();
            }
            Ok([Some(name), Some(defaults)]) if name == "@" => baseline.defaults = defaults,
            Ok([Some(name), Some(setting)]) => baseline.settings.push((name, setting)),
            _ => {}
        }
    }
    baseline.settings.sort();
    Ok(baseline)
}

/// Gives a server the settings that a session wants; awaited before a byte of the client's is sent.
///
/// # Errors
/// The server refused a value or failed; it is broken and must not be used again.
pub async fn apply(server: &mut ServerConn, wanted: &SharedSettings) -> Result<(), Error> {
    if Arc::ptr_eq(&server.settings, wanted) {
        return Ok(());
    }
    let Some(sql) = server.settings.difference_sql(wanted) else {
        server.settings = Arc::clone(wanted);
        return Ok(());
    };
    match server.run(&sql).await {
        Ok(_) => {
            server.settings = Arc::clone(wanted);
            Ok(())
        }
        Err(error) => {
            server.mark_broken();
            Err(error)
        }
    }
}

/// Reads back what the named settings are now, and returns the session's whole map: `before` with those values.
/// A value that a fresh login has too is left out.
///
/// # Errors
/// The server failed.
pub async fn read_back(
    server: &mut ServerConn,
    before: &Settings,
    names: &BTreeSet<Box<str>>,
    baseline: Option<&Baseline>,
) -> Result<Settings, Error> {
    let mut after = before.clone();
    // Bytes of another encoding cannot be kept as they come: then everything is asked for in UTF-8, spelled in hexadecimal.
    let is_utf8 = server.parameter("client_encoding").is_none_or(|name| matches!(name, "UTF8" | "SQL_ASCII"));
    let takes_report = |name: &str| is_utf8 && is_reported(name);
    let unreported: Vec<&str> = names.iter().map(|name| &**name).filter(|name| !takes_report(name)).collect();
    for name in names.iter().filter(|name| takes_report(name)) {
        let value = server.parameter(name).map(str::to_owned);
        let at_login = baseline.and_then(|baseline| reported_at_login(baseline, name));
        note(&mut after, name, value.as_deref(), at_login);
    }
    if unreported.is_empty() {
        return Ok(after);
    }
    let call = |name: &&str| {
        let call = format!("pg_catalog.current_setting({},true)", literal(name));
        if is_utf8 { call } else { format!("pg_catalog.encode(pg_catalog.convert_to({call},'UTF8'),'hex')") }
    };
    let calls: Vec<String> = unreported.iter().map(call).collect();
    let rows = server.run(&format!("SELECT {}", calls.join(","))).await?;
    for (name, value) in unreported.iter().zip(rows.into_iter().next().unwrap_or_default()) {
        let value = if is_utf8 { value } else { value.map(|hex| from_hex(&hex)).transpose()? };
        let at_login = match baseline {
            _ if *name == "role" => Some("none"),
            Some(known) => known.setting(name).or_else(|| reported_at_login(known, name)),
            None => None,
        };
        note(&mut after, name, value.as_deref(), at_login);
    }
    Ok(after)
}

fn from_hex(hex: &str) -> Result<String, Error> {
    let digits = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|it| u8::from_str_radix(it, 16).ok()));
    let bytes: Option<Vec<u8>> = digits.collect();
    bytes
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| Error::internal("a setting's value came in a form that was not asked for"))
}

fn reported_at_login<'a>(baseline: &'a Baseline, name: &str) -> Option<&'a str> {
    baseline.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn note(settings: &mut Settings, name: &str, value: Option<&str>, at_login: Option<&str>) {
    match value {
        Some(value) if at_login != Some(value) => settings.set(name, value),
        _ => settings.remove(name),
    }
}

/// Throws away everything that a session can leave on a server (PostgreSQL manual, DISCARD ALL).
///
/// # Errors
/// The server failed; it is broken.
pub async fn discard_all(server: &mut ServerConn) -> Result<(), Error> {
    let result = server.run("DISCARD ALL").await;
    match result {
        Ok(_) => {
            server.settings = SharedSettings::default();
            server.held.clear();
            server.unnamed = None;
            server.dirty = false;
            Ok(())
        }
        Err(error) => {
            server.mark_broken();
            Err(error)
        }
    }
}
