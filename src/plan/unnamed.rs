//! DDL that reaches objects of the shards without naming a table there: it would run on the primary alone, and report success.

use super::Refusal;
use super::rules::Input;
use super::sharded::refusal;
use crate::catalog::model::Catalog;
use crate::config::model::Database;
use crate::sql::lexer::{Lexer, Token};
use crate::sql::literal;

/// Whether every statement of the text leaves the shards as they are.
///
/// # Errors
/// One changes what the shards have as well: types, functions, schemas, rights, settings.
pub(super) fn check(input: &Input<'_>) -> Result<(), Refusal> {
    let text = input.text.as_bytes();
    let tokens: Vec<Token> = Lexer::new(text, input.session.standard_conforming_strings).significant().collect();
    for tokens in tokens.split(|token| token.is_punctuation(text, b';')) {
        let words = Words { tokens, text };
        if let Some(what) = words.reached(&Shards { database: input.database, catalog: input.shards }) {
            let message = format!("{what} also concerns the shards, and would run on the primary alone");
            return Err(refusal("ddl-beyond-names", message, "Run it on each server, and pgherd check after it."));
        }
    }
    Ok(())
}

/// What lies on the shards.
struct Shards<'a> {
    database: &'a Database,
    catalog: Option<&'a Catalog>,
}

/// A name, perhaps with a schema.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    schema: Option<String>,
    name: String,
}

impl Shards<'_> {
    fn is_schema_with_tables(&self, name: &Named) -> bool {
        self.database.tables.iter().any(|table| *table.schema == *name.name)
    }

    fn has_type(&self, name: &Named) -> bool {
        let is_it = |known: &crate::catalog::model::Type| {
            *known.name == *name.name && name.is_in(&known.schema) && !is_system(&known.schema)
        };
        self.catalog.is_none_or(|catalog| catalog.types.values().any(is_it))
    }

    fn has_collation(&self, name: &Named) -> bool {
        let is_it = |known: &crate::catalog::model::Collation| *known.name == *name.name;
        self.catalog.is_none_or(|catalog| catalog.collations.values().any(is_it))
    }

    fn has_function(&self, name: &Named) -> bool {
        let Some(catalog) = self.catalog else { return true };
        let known = catalog.functions.get(&*name.name).into_iter().flatten();
        known.filter(|function| function.user_defined).any(|function| name.is_in(&function.schema))
    }

    /// Roles are each server's own.
    fn are_on_other_servers(&self) -> bool {
        let primary = &self.database.primary;
        self.database.shards.iter().any(|shard| (&shard.host, shard.port) != (&primary.host, primary.port))
    }
}

impl Named {
    fn is_in(&self, schema: &str) -> bool {
        self.schema.as_deref().is_none_or(|it| it == schema)
    }
}

fn is_system(schema: &str) -> bool {
    schema == "pg_catalog" || schema == "information_schema"
}

/// One statement's tokens.
struct Words<'a> {
    tokens: &'a [Token],
    text: &'a [u8],
}

impl Words<'_> {
    fn is(&self, at: usize, word: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is_word(self.text, word))
    }

    fn are(&self, at: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(further, word)| self.is(at + further, word))
    }

    /// The first of these words that stands there.
    fn one_of<'w>(&self, at: usize, words: &[&'w str]) -> Option<&'w str> {
        words.iter().copied().find(|word| self.is(at, word))
    }

    fn is_punctuation(&self, at: usize, byte: u8) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is_punctuation(self.text, byte))
    }

    fn has(&self, word: &str) -> bool {
        (0..self.tokens.len()).any(|at| self.is(at, word))
    }

    /// Where that word stands outside of parentheses.
    fn outer(&self, word: &str) -> Option<usize> {
        let mut depth = 0_i32;
        (0..self.tokens.len()).find(|&at| {
            depth += i32::from(self.is_punctuation(at, b'(')) - i32::from(self.is_punctuation(at, b')'));
            depth == 0 && self.is(at, word)
        })
    }

    /// The names of a list that begins there, `IF EXISTS` and functions' arguments left out.
    fn names(&self, at: usize) -> Vec<Named> {
        let identifier = |at: usize| literal::identifier(*self.tokens.get(at)?, self.text);
        let mut at = if self.are(at, &["if", "exists"]) { at + 2 } else { at };
        let mut names = Vec::new();
        while let Some(first) = identifier(at) {
            let mut named = Named { schema: None, name: first };
            at += 1;
            while self.is_punctuation(at, b'.')
                && let Some(next) = identifier(at + 1)
            {
                named = Named { schema: Some(named.name), name: next };
                at += 2;
            }
            names.push(named);
            let mut depth = 0_i32;
            while at < self.tokens.len() {
                depth += i32::from(self.is_punctuation(at, b'(')) - i32::from(self.is_punctuation(at, b')'));
                if depth == 0 && !self.is_punctuation(at, b')') {
                    break;
                }
                at += 1;
            }
            if !self.is_punctuation(at, b',') {
                break;
            }
            at += 1;
        }
        names
    }

    /// What it does that concerns the shards, if it does.
    fn reached(&self, shards: &Shards<'_>) -> Option<String> {
        match self.one_of(0, &["create", "alter", "drop", "reassign", "grant", "revoke"])? {
            "grant" => self.rights(shards).then(|| "this GRANT".to_owned()),
            "revoke" => self.rights(shards).then(|| "this REVOKE".to_owned()),
            "reassign" => self.is(1, "owned").then(|| "REASSIGN OWNED".to_owned()),
            "create" => {
                let at = if self.are(1, &["or", "replace"]) { 3 } else { 1 };
                let kind = self.one_of(at, &["function", "procedure", "aggregate"])?;
                self.of_function(shards, kind, at + 1)
            }
            verb => self.changed(shards, verb),
        }
    }

    /// ALTER and DROP.
    fn changed(&self, shards: &Shards<'_>, verb: &str) -> Option<String> {
        const KINDS: [&str; 16] = [
            "owned",
            "default",
            "database",
            "extension",
            "schema",
            "type",
            "domain",
            "collation",
            "function",
            "procedure",
            "routine",
            "aggregate",
            "role",
            "user",
            "group",
            "text",
        ];
        let kind = self.one_of(1, &KINDS)?;
        let any = |is_meant: &dyn Fn(&Named) -> bool| self.names(2).iter().any(is_meant);
        let is_meant = match kind {
            "owned" | "extension" => true,
            "default" => self.is(2, "privileges"),
            "database" => self.has("set") || self.has("reset"),
            "schema" => any(&|name| shards.is_schema_with_tables(name)),
            "type" | "domain" => any(&|name| shards.has_type(name)),
            "collation" => any(&|name| shards.has_collation(name)),
            "role" | "user" | "group" => {
                !self.is(2, "mapping") && (shards.are_on_other_servers() || (verb == "alter" && self.has("database")))
            }
            "text" => self.is(2, "search"),
            _ => return self.of_function(shards, kind, 2),
        };
        is_meant.then(|| format!("{} {}", verb.to_uppercase(), kind.to_uppercase()))
    }

    fn of_function(&self, shards: &Shards<'_>, kind: &str, at: usize) -> Option<String> {
        let name = self.names(at).into_iter().find(|name| shards.has_function(name))?;
        Some(format!("a change of the {kind} \"{}\"", name.name))
    }

    /// GRANT and REVOKE of what is no table by name: such are judged by that.
    fn rights(&self, shards: &Shards<'_>) -> bool {
        let Some(on) = self.outer("on") else { return shards.are_on_other_servers() };
        let at = on + 1;
        if self.is(at, "all") {
            let schemas = self.outer("schema").map_or_else(Vec::new, |schema| self.names(schema + 1));
            return schemas.iter().any(|name| shards.is_schema_with_tables(name));
        }
        let any = |is_meant: &dyn Fn(&Named) -> bool| self.names(at + 1).iter().any(is_meant);
        match self.one_of(at, &["schema", "type", "domain", "function", "procedure", "routine"]) {
            Some("schema") => any(&|name| shards.is_schema_with_tables(name)),
            Some("type" | "domain") => any(&|name| shards.has_type(name)),
            Some(_) => any(&|name| shards.has_function(name)),
            None => false,
        }
    }
}
