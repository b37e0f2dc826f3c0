//! Schemas that each lie whole on one shard: a statement runs where the schemas lie that it names, or that its search_path names.

use std::collections::BTreeSet;

use super::rules::Input;
use super::sharded::refusal;
use super::{Plan, Reason, Refusal, hash, names};
use crate::config::model::{Database, Distribution};
use crate::plan::value::{Kind, Value};
use crate::sql::facts::{Class, Effect, Name, Statement};
use crate::sql::lexer::{Lexer, Token};
use crate::sql::literal;

/// Types and functions that look up a name that they get as text; the types' functions begin with `to_`, too.
const SEARCHERS: [&str; 20] = [
    "regclass",
    "regtype",
    "regproc",
    "regprocedure",
    "regoper",
    "regoperator",
    "regconfig",
    "regdictionary",
    "regcollation",
    "nextval",
    "currval",
    "setval",
    "pg_get_serial_sequence",
    "pg_relation_size",
    "pg_table_size",
    "pg_indexes_size",
    "pg_total_relation_size",
    "has_table_privilege",
    "has_any_column_privilege",
    "has_sequence_privilege",
];
const SCHEMA_SEARCHERS: [&str; 2] = ["regnamespace", "has_schema_privilege"];

/// The shard of a schema; `None` if it is not spread.
pub fn shard_of(database: &Database, schema: &str) -> Option<usize> {
    let schemas = database.schemas.as_ref()?;
    if let Some(shard) = schemas.listed.get(schema) {
        return Some(*shard);
    }
    let value = Value::Bytes(schema.as_bytes().into());
    let is_hashed = schemas.hashed.iter().any(|pattern| pattern.matches(schema));
    hash::remainder(&[(Kind::Text, Some(&value))], database.shards.len()).filter(|_| is_hashed)
}

/// A plan for a query string that concerns schemas of the shards; `None` where it does not.
pub(super) fn decide(input: &Input<'_>) -> Option<Plan> {
    input.database.schemas.as_ref()?;
    match home(input) {
        Ok(None) => None,
        Ok(Some(shard)) => Some(Plan::Shard {
            shard,
            detachable: false,
            reason: Reason { code: "schema", text: "its schemas lie whole on one shard".into() },
        }),
        Err(refusal) => Some(Plan::Refuse(refusal)),
    }
}

fn home(input: &Input<'_>) -> Result<Option<usize>, Refusal> {
    let path = of_path(input);
    let mut homes = BTreeSet::new();
    let mut others: Option<String> = None;
    let mut path_is_known = input.session.path_is_known;
    for statement in &input.facts.statements {
        let own = named(input, statement);
        let is_unsaid = takes_path(statement);
        if is_unsaid && !path_is_known {
            let message = "which schemas search_path names here is not known before it has been set";
            let hint = "Set search_path in a statement of its own, and Sync before what looks names up in it; or write the schemas.";
            return Err(refusal("search-path", message.into(), hint));
        }
        if statement.class == Class::Ddl && takes_name_of_user(&tokens(input), input.text.as_bytes()) {
            let hint = "Write the schema's name: it says where the schema lies.";
            return Err(refusal(
                "schemas",
                "a schema is to have the name of a role that the statement does not name".into(),
                hint,
            ));
        }
        path_is_known &= !statement.effects.iter().any(changes_path);
        if is_unsaid {
            homes.extend(&path);
        }
        others = others.or_else(|| elsewhere(input, statement, is_unsaid && !path.is_empty()));
        others = others.or_else(|| unspread(input, statement));
        homes.extend(own);
    }
    let mut shards = homes.into_iter();
    let Some(shard) = shards.next() else { return Ok(None) };
    if !input.session.text_is_plain {
        let hint = "Set client_encoding to UTF8.";
        return Err(refusal("client-encoding", "a text in this client_encoding cannot be read safely".into(), hint));
    }
    if shards.next().is_some() {
        let hint = "Ask for each of them on its own, or let search_path name schemas of one shard.";
        return Err(refusal("schemas", "it concerns schemas that lie on several shards".into(), hint));
    }
    match others {
        None => Ok(Some(shard)),
        Some(name) => Err(refusal(
            "mixed",
            format!("{name} does not lie on the shard of the schemas named"),
            "Make a table a reference table, name a schema that lies there, or ask for it on its own.",
        )),
    }
}

/// The shards of the schemas that search_path names, whether the primary has them or not.
fn of_path(input: &Input<'_>) -> BTreeSet<usize> {
    input.session.listed_path.iter().filter_map(|schema| shard_of(input.database, schema)).collect()
}

/// Whether names may be looked up elsewhere from then on.
fn changes_path(effect: &Effect) -> bool {
    match effect {
        Effect::Set(name) | Effect::SetLocal(name) | Effect::Reset(name) | Effect::ResetLocal(name) => {
            matches!(&**name, "search_path" | "role" | "session_authorization")
        }
        Effect::ResetAll | Effect::DiscardAll | Effect::OpaqueSettings => true,
        _ => false,
    }
}

/// Whether search_path says where it belongs: it has a name without a schema, or no relation's name at all.
fn takes_path(statement: &Statement) -> bool {
    let names = || statement.reads.iter().chain(&statement.writes);
    match statement.class {
        Class::Empty | Class::Show | Class::Transaction(_) | Class::ExplainRoute => false,
        Class::Session => statement.effects.iter().any(|effect| {
            matches!(
                effect,
                Effect::TemporaryObject | Effect::Cursor | Effect::HoldCursor | Effect::Prepare(_) | Effect::Execute(_)
            )
        }),
        // Who listens, listens on the primary.
        Class::Utility if names().next().is_none() && statement.identifiers.iter().any(|it| &**it == "notify") => false,
        _ if statement.functions.iter().any(|function| &*function.name == "pg_notify") => false,
        _ => names().next().is_none() || names().any(|name| name.schema.is_none()),
    }
}

/// The shards of the schemas that a statement names.
fn named(input: &Input<'_>, statement: &Statement) -> BTreeSet<usize> {
    let shard = |schema: &str| shard_of(input.database, schema);
    let names = statement.reads.iter().chain(&statement.writes).chain(&statement.functions).chain(&statement.casts);
    let mut shards: BTreeSet<usize> = names.filter_map(|name| shard(name.schema.as_deref()?)).collect();
    if matches!(statement.class, Class::Ddl | Class::Utility | Class::Opaque | Class::Session) {
        shards.extend(qualifiers(input).iter().filter_map(|schema| shard(schema)));
    }
    shards.extend(in_constants(input, statement).iter().filter_map(|schema| shard(schema)));
    if statement.class == Class::Opaque {
        let listed = |name: &&str| input.database.schemas.as_ref().is_some_and(|it| it.listed.contains_key(*name));
        shards.extend(statement.identifiers.iter().map(|it| &**it).filter(listed).filter_map(shard));
    }
    shards
}

/// Names that stand before a dot, or behind the word SCHEMA.
fn qualifiers(input: &Input<'_>) -> Vec<String> {
    let text = input.text.as_bytes();
    let tokens = tokens(input);
    let before_dots = tokens.iter().enumerate().filter_map(|(at, token)| {
        let next = tokens.get(at + 1)?;
        literal::identifier(*token, text).filter(|_| next.is_punctuation(text, b'.'))
    });
    before_dots.chain(schemas(&tokens, text).into_iter().map(|(name, _)| name)).collect()
}

fn tokens(input: &Input<'_>) -> Vec<Token> {
    Lexer::new(input.text.as_bytes(), input.session.standard_conforming_strings).significant().collect()
}

/// Names behind the word SCHEMA: lists, the new name of one that is renamed, and the role that gives its name to one. Whether it is
/// the statement's grammar that says so; elsewhere `schema` may be a column.
fn schemas(tokens: &[Token], text: &[u8]) -> Vec<(String, bool)> {
    let is = |at: usize, word: &str| tokens.get(at).is_some_and(|token| token.is_word(text, word));
    let name = |at: usize| literal::identifier(*tokens.get(at)?, text);
    let mut found = Vec::new();
    for schema in (0..tokens.len()).filter(|&at| is(at, "schema")) {
        let is_sure =
            ["create", "drop", "alter", "set", "on", "in"].iter().any(|word| schema > 0 && is(schema - 1, word));
        let mut at = schema + 1;
        if is(at, "if") {
            at += usize::from(is(at + 1, "not")) + usize::from(is(at + 1, "exists") || is(at + 2, "exists")) + 1;
        }
        at += usize::from(is(at, "authorization"));
        while let Some(name) = name(at) {
            found.push((name, is_sure));
            at += 1;
            if !is_sure || !tokens.get(at).is_some_and(|token| token.is_punctuation(text, b',')) {
                break;
            }
            at += 1;
        }
        if is(at, "rename") && is(at + 1, "to") {
            found.extend(name(at + 2).map(|name| (name, is_sure)));
        }
    }
    found
}

/// Whether a schema is to have the name of a role that the text does not show.
fn takes_name_of_user(tokens: &[Token], text: &[u8]) -> bool {
    let is = |token: &Token, words: &[&str]| words.iter().any(|word| token.is_word(text, word));
    let users = ["current_user", "current_role", "session_user"];
    tokens
        .windows(3)
        .any(|of| is(&of[0], &["schema", "exists"]) && is(&of[1], &["authorization"]) && is(&of[2], &users))
}

/// A schema that DDL names and that does not lie on a shard.
fn unspread(input: &Input<'_>, statement: &Statement) -> Option<String> {
    if !matches!(statement.class, Class::Ddl | Class::Utility | Class::Opaque) {
        return None;
    }
    let named = schemas(&tokens(input), input.text.as_bytes());
    let is_unspread = |(name, is_sure): &(String, bool)| *is_sure && shard_of(input.database, name).is_none();
    named.into_iter().find(is_unspread).map(|(name, _)| format!("the schema {name}"))
}

/// Schemas that constants name, in a statement that looks names up in constants (`'acme.t'::regclass`, `nextval('acme.s')`).
fn in_constants(input: &Input<'_>, statement: &Statement) -> Vec<String> {
    let has = |wanted: &[&str]| {
        let mut names = statement.functions.iter().chain(&statement.casts);
        names.any(|name| wanted.contains(&name.name.strip_prefix("to_").unwrap_or(&name.name)))
    };
    let takes_schemas = has(&SCHEMA_SEARCHERS);
    if !takes_schemas && !has(&SEARCHERS) {
        return Vec::new();
    }
    let text = input.text.as_bytes();
    let constants = tokens(input).into_iter().filter_map(|token| literal::string(token, text));
    constants.filter_map(|constant| qualifier(&constant, takes_schemas)).collect()
}

/// The schema of a qualified name; with `or_alone` the only name there is, too.
fn qualifier(constant: &str, or_alone: bool) -> Option<String> {
    let text = constant.as_bytes();
    let mut tokens = Lexer::new(text, true).significant();
    let name = literal::identifier(tokens.next()?, text)?;
    tokens.next().map_or(or_alone, |next| next.is_punctuation(text, b'.')).then_some(name)
}

/// A relation that a statement names and that is not whole on every shard: a table of the primary, or one that is spread by key.
/// `in_schema`: names without a schema are first looked for in a schema of the shards.
fn elsewhere(input: &Input<'_>, statement: &Statement, in_schema: bool) -> Option<String> {
    let path = input.session.search_path;
    let is_elsewhere = |name: &&Name| {
        if name.schema.as_deref().is_some_and(|schema| {
            shard_of(input.database, schema).is_some() || schema == "pg_catalog" || schema == "information_schema"
        }) {
            return false;
        }
        let configured = input.database.tables.iter().find(|table| {
            *table.name == *name.name && name.schema.as_deref().is_none_or(|schema| *table.schema == *schema)
        });
        match configured {
            Some(table) => table.distribution != Distribution::Reference,
            // A schema of the shards may have it; if none does, the shard says so.
            None if in_schema && name.schema.is_none() => false,
            None => input.catalog.is_some_and(|catalog| {
                names::candidates(name, catalog, path).iter().any(|relation| !names::is_system(relation))
            }),
        }
    };
    let hidden = statement.identifiers.iter().filter(|_| statement.class == Class::Opaque).find(|identifier| {
        let mut tables = input.database.tables.iter();
        tables.any(|table| *table.name == ***identifier && table.distribution != Distribution::Reference)
    });
    let mut names = statement.reads.iter().chain(&statement.writes);
    hidden.map(ToString::to_string).or_else(|| names.find(is_elsewhere).map(names::display))
}
