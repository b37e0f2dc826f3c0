//! The shipped proxy.toml and docs/configuration.md against the list of keys.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::keys::{self, Applies, Key, Kind};
use super::parse;

const SHIPPED: &str = include_str!("../../proxy.toml");
const REFERENCE: &str = include_str!("../../docs/configuration.md");

fn type_of(kind: Kind) -> String {
    match kind {
        Kind::Text => "string".into(),
        Kind::Secret => "string, secret".into(),
        Kind::Path => "path".into(),
        Kind::Duration => "duration".into(),
        Kind::DurationOrOff => "duration or `off`".into(),
        Kind::Size => "size".into(),
        Kind::Count => "integer".into(),
        Kind::Flag => "boolean".into(),
        Kind::Choice(words) => words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", "),
        Kind::Texts => "array of strings".into(),
        Kind::Secrets => "array of strings, secret".into(),
        Kind::Values => "array of strings and integers".into(),
        Kind::TextOrTexts => "string or array of strings".into(),
        Kind::ValueOrValues => "string, integer or array of them".into(),
        Kind::DurationByName => "table of durations, `off` or `pin`".into(),
        Kind::Table(_) | Kind::Tables(_) => String::new(),
    }
}

/// The row that the reference must hold for a key.
fn row(path: &str, key: &Key) -> String {
    let default = match key.default {
        Some(_) | None if path == "database.pool" => " `[pool]`".to_string(),
        Some(default) => format!(" `{default}`"),
        None => String::new(),
    };
    let applied = if key.applies == Applies::Live { "live" } else { "restart" };
    let path = if path.is_empty() { key.name.to_string() } else { format!("{path}.{}", key.name) };
    format!("| `{path}` | {} |{default} | {applied} |", type_of(key.kind))
}

#[test]
fn the_reference_has_a_true_row_for_every_key_and_none_for_another() {
    let wanted: BTreeSet<String> = keys::sections()
        .iter()
        .flat_map(|section| section.keys.iter().map(|key| (section.path, key)))
        .filter(|(_, key)| !matches!(key.kind, Kind::Table(_) | Kind::Tables(_)))
        .map(|(path, key)| row(path, key))
        .collect();
    let there: BTreeSet<String> = REFERENCE.lines().filter(|line| line.starts_with("| `")).map(String::from).collect();
    let missing: Vec<_> = wanted.difference(&there).collect();
    let extra: Vec<_> = there.difference(&wanted).collect();
    assert!(missing.is_empty() && extra.is_empty(), "missing: {missing:#?}\nnot true: {extra:#?}");
}

#[test]
fn the_reference_names_what_is_not_supported() {
    let section = REFERENCE.split("## Not in this version").nth(1).expect("the section");
    for (section_path, key) in
        keys::sections().iter().flat_map(|section| section.unsupported.iter().map(|(key, _)| (section.path, key)))
    {
        assert!(section.contains(&format!("`{section_path}.{key}`")), "{section_path}.{key}");
    }
}

#[test]
fn the_shipped_file_loads_as_it_is() {
    let loaded = parse(SHIPPED, Path::new("proxy.toml"), Path::new("/nonexistent"), &|_| None);
    let loaded = loaded.unwrap_or_else(|faults| panic!("{faults}"));
    assert!(loaded.warnings.is_empty(), "{:#?}", loaded.warnings);
    assert_eq!(loaded.config.listen.address.to_string(), "127.0.0.1:6432");
    assert!(loaded.config.databases.contains_key("app") && loaded.config.users.contains_key("app"));
}

/// The shipped file with every setting that it shows in a comment.
fn uncommented() -> String {
    let is_setting = |line: &&str| line.starts_with('#') && line[1..].starts_with(|c: char| !c.is_whitespace());
    SHIPPED.lines().map(|line| if is_setting(&line) { &line[1..] } else { line }).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_file_loads_with_all_that_it_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    for name in ["tls", "secrets", "run"] {
        fs::create_dir(at(name)).expect("a folder");
    }
    fs::write(at("tls/server.crt"), made.cert.pem()).expect("a file");
    fs::write(at("tls/clients.crt"), made.cert.pem()).expect("a file");
    fs::write(at("tls/server.key"), made.signing_key.serialize_pem()).expect("a file");
    fs::write(at("secrets/reporting"), "secret\n").expect("a file");
    let text = uncommented().replace("/run/pgherd", "run");
    let environment = |name: &str| (name == "PGHERD_HTTP_TOKEN").then(|| "0123456789abcdef".to_owned());
    let loaded = parse(&text, Path::new("proxy.toml"), folder.path(), &environment);
    let config = loaded.unwrap_or_else(|faults| panic!("{faults}\n{text}")).config;
    assert_eq!(config.databases["app"].tables.len(), 4);
    assert_eq!(config.users.len(), 2);
    assert!(config.cache.redis.is_some());
}

#[test]
fn what_the_shipped_file_calls_a_default_is_one() {
    for line in SHIPPED.lines().filter(|line| line.starts_with('#') && !line.contains("example")) {
        let Some((name, value)) = line[1..].split_once(" = ") else { continue };
        if name.contains(' ') || name.is_empty() {
            continue;
        }
        let defaults: Vec<_> =
            keys::sections().iter().filter_map(|section| section.key(name)).filter_map(|key| key.default).collect();
        // What an example table holds has no default at all.
        let has_default = defaults.is_empty() || defaults.contains(&value.trim().trim_matches('"'));
        assert!(has_default, "{line} but the default is {defaults:?}");
    }
}
