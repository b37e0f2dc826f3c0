//! VACUUM, ANALYZE, REINDEX, CLUSTER and REPACK: what they are about, as their grammar says.

use super::facts::Name;
use super::piece::{Piece, split};

/// One statement of that kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// What it is about.
    pub about: About,
    /// Whether PostgreSQL itself refuses it within a transaction block.
    pub only_alone: bool,
}

/// What such a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// All tables that the role may maintain.
    Everything,
    /// These tables.
    Tables(Vec<Name>),
    /// This index.
    Index(Name),
    /// All tables of this schema.
    Schema(Box<str>),
    /// This database, or its system catalogs: it must be the one that the session is in.
    Database(Box<str>),
}

/// What each statement of a query string is about; `None` for other statements, and for forms that are not known here.
pub fn maintenance(text: &str, standard_conforming_strings: bool) -> Vec<Option<Maintenance>> {
    let text = text.as_bytes();
    let pieces = split(text, standard_conforming_strings);
    pieces.iter().map(|tokens| of(Piece { text, tokens })).collect()
}

fn of(piece: Piece<'_>) -> Option<Maintenance> {
    let (at, has_options) = match piece.is_punctuation(1, b'(') {
        true => (piece.behind_parenthesis(1)?, true),
        false => (1, false),
    };
    match piece.lower(0).as_str() {
        "vacuum" => {
            let words: &[&str] = if has_options { &[] } else { &["full", "freeze", "verbose", "analyze"] };
            let at = words.iter().fold(at, |at, word| piece.skip(at, word));
            let at = if has_options { at } else { piece.skip(at, "analyse") };
            Some(Maintenance { about: tables(piece, at)?, only_alone: true })
        }
        "analyze" | "analyse" => {
            let at = if has_options { at } else { piece.skip(at, "verbose") };
            Some(Maintenance { about: tables(piece, at)?, only_alone: false })
        }
        "reindex" => reindex(piece, at),
        "cluster" | "repack" => cluster(piece, if has_options { at } else { piece.skip(at, "verbose") }),
        _ => None,
    }
}

/// `[ONLY] name [*] [(columns)] [, ...]` to the end; nothing is everything.
fn tables(piece: Piece<'_>, mut at: usize) -> Option<About> {
    if at == piece.tokens.len() {
        return Some(About::Everything);
    }
    let mut names = Vec::new();
    loop {
        let (name, next) = piece.name(piece.skip(at, "only"))?;
        names.push(name);
        at = next + usize::from(piece.bytes(next) == b"*");
        if piece.is_punctuation(at, b'(') {
            at = piece.behind_parenthesis(at)?;
        }
        if at == piece.tokens.len() {
            return Some(About::Tables(names));
        }
        if !piece.is_punctuation(at, b',') {
            return None;
        }
        at += 1;
    }
}

/// `REINDEX [(options)] INDEX | TABLE | SCHEMA | DATABASE | SYSTEM [CONCURRENTLY] [name]`
fn reindex(piece: Piece<'_>, kind: usize) -> Option<Maintenance> {
    let at = piece.skip(kind + 1, "concurrently");
    let is_concurrent = (1..at).any(|at| piece.is(at, "concurrently"));
    if at == piece.tokens.len() && piece.is_one(kind, &["database", "system"]) {
        return Some(Maintenance { about: About::Everything, only_alone: true });
    }
    let (name, end) = piece.name(at)?;
    if end != piece.tokens.len() {
        return None;
    }
    let (about, only_alone) = match piece.lower(kind).as_str() {
        "index" => (About::Index(name), is_concurrent),
        "table" => (About::Tables(vec![name]), is_concurrent),
        "schema" if name.schema.is_none() => (About::Schema(name.name), true),
        "database" | "system" if name.schema.is_none() => (About::Database(name.name), true),
        _ => return None,
    };
    Some(Maintenance { about, only_alone })
}

/// `CLUSTER [table [USING index]]`, `CLUSTER index ON table`, `REPACK [table [(columns)] [USING INDEX [index]]]`
fn cluster(piece: Piece<'_>, at: usize) -> Option<Maintenance> {
    let end = piece.tokens.len();
    if at == end || piece.are(at, &["using", "index"]) && at + 2 == end {
        return Some(Maintenance { about: About::Everything, only_alone: true });
    }
    let (first, next) = piece.name(at)?;
    let one = |name| Some(Maintenance { about: About::Tables(vec![name]), only_alone: false });
    if piece.is(next, "on") {
        let (table, behind) = piece.name(next + 1)?;
        return one(table).filter(|_| behind == end);
    }
    let at = if piece.is_punctuation(next, b'(') { piece.behind_parenthesis(next)? } else { next };
    if !piece.is(at, "using") {
        return one(first).filter(|_| at == end);
    }
    let index = piece.skip(at + 1, "index");
    let behind = piece.name(index).map_or(index, |(_, behind)| behind);
    one(first).filter(|_| behind == end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(text: &str) -> Option<String> {
        let shown = |name: &Name| match &name.schema {
            Some(schema) => format!("{schema}.{}", name.name),
            None => name.name.to_string(),
        };
        let found = maintenance(text, true).into_iter().next()??;
        let what = match &found.about {
            About::Everything => "all".into(),
            About::Tables(names) => names.iter().map(shown).collect::<Vec<_>>().join(" "),
            About::Index(name) => format!("index {}", shown(name)),
            About::Schema(name) => format!("schema {name}"),
            About::Database(name) => format!("database {name}"),
        };
        Some(if found.only_alone { format!("{what}!") } else { what })
    }

    #[test]
    fn what_maintenance_is_about_is_read_off_its_text() {
        for (text, expected) in [
            ("vacuum", "all!"),
            ("VACUUM (ANALYZE, PARALLEL 2)", "all!"),
            ("vacuum full freeze verbose analyze", "all!"),
            ("vacuum full public.a, only b, \"C\"", "public.a b C!"),
            ("vacuum (verbose, analyze) a (x, y), b *", "a b!"),
            ("analyze", "all"),
            ("analyse verbose a(x)", "a"),
            ("analyze (skip_locked, buffer_usage_limit '1 MB') \"analyze\"", "analyze"),
            ("reindex index s.i", "index s.i"),
            ("reindex (verbose) table concurrently t", "t!"),
            ("reindex (concurrently) index i", "index i!"),
            ("reindex schema s", "schema s!"),
            ("reindex database", "all!"),
            ("reindex system concurrently", "all!"),
            ("reindex database app", "database app!"),
            ("cluster", "all!"),
            ("cluster verbose", "all!"),
            ("cluster (verbose) s.t using i", "s.t"),
            ("cluster i on s.t", "s.t"),
            ("repack t using index", "t"),
            ("repack (verbose) t (a, b) using index i", "t"),
        ] {
            assert_eq!(about(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn other_statements_and_forms_are_not_guessed_at() {
        for text in [
            "select 1",
            "vacuum a b",
            "analyze a,",
            "reindex",
            "reindex table",
            "reindex a b",
            "cluster t with x",
            "vacuum (full",
        ] {
            assert_eq!(about(text), None, "{text}");
        }
        assert_eq!(maintenance("select 1; analyze a", true).len(), 2);
    }
}
