//! What a statement that is known by its keywords could mean by its identifiers: relations of a schema, or of whatever search_path says.

use super::facts::Name;
use super::piece::Piece;

/// Every identifier, keywords included, each once, with the one that stands before its dot. What a relation is renamed to, and what it is
/// where it is moved to, is named with the schema that it will be in.
pub(super) fn mentions(piece: Piece<'_>) -> Vec<Name> {
    let mut all = Vec::new();
    for at in 0..piece.tokens.len() {
        let Some(name) = piece.identifier(at) else { continue };
        let renamed = at.checked_sub(2).filter(|&rename| piece.are(rename, &["rename", "to"]));
        let schema = match renamed.and_then(|rename| named_before(piece, rename)) {
            Some(before) => before.schema,
            None => qualifier(piece, at),
        };
        all.push(Name { schema, name: name.into() });
        if piece.are(at, &["set", "schema"])
            && let (Some(moved), Some(schema)) = (named_before(piece, at), piece.identifier(at + 2))
        {
            all.push(Name { schema: Some(schema.into()), name: moved.name });
        }
    }
    if let Some(schema) = created_schema(piece) {
        // Tables that are made with a schema, or brought into it, are in it.
        let bare: Vec<Name> = all.iter().filter(|name| name.schema.is_none()).cloned().collect();
        all.extend(bare.into_iter().map(|name| Name { schema: Some(schema.clone()), ..name }));
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// The identifier in front of the dot that stands before `at`.
fn qualifier(piece: Piece<'_>, at: usize) -> Option<Box<str>> {
    let dot = at.checked_sub(1).filter(|&dot| piece.is_punctuation(dot, b'.'))?;
    piece.identifier(dot.checked_sub(1)?).map(Into::into)
}

/// The name that ends in front of `at`, perhaps with a star behind it.
fn named_before(piece: Piece<'_>, at: usize) -> Option<Name> {
    let last = at.checked_sub(1)?;
    let last = if piece.bytes(last) == b"*" { last.checked_sub(1)? } else { last };
    Some(Name { schema: qualifier(piece, last), name: piece.identifier(last)?.into() })
}

/// The schema that CREATE SCHEMA makes, or that IMPORT FOREIGN SCHEMA fills.
fn created_schema(piece: Piece<'_>) -> Option<Box<str>> {
    if piece.is(0, "import") {
        let into = (1..piece.tokens.len()).rev().find(|&at| piece.is(at, "into"))?;
        return piece.identifier(into + 1).map(Into::into);
    }
    if !piece.are(0, &["create", "schema"]) {
        return None;
    }
    let at = if piece.are(2, &["if", "not", "exists"]) { 5 } else { 2 };
    piece.identifier(piece.skip(at, "authorization")).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Vec<String> {
        let pieces = super::super::piece::split(text.as_bytes(), true);
        let shown = |name: Name| match name.schema {
            Some(schema) => format!("{schema}.{}", name.name),
            None => name.name.into(),
        };
        mentions(Piece { text: text.as_bytes(), tokens: &pieces[0] }).into_iter().map(shown).collect()
    }

    fn has(text: &str, name: &str) -> bool {
        of(text).iter().any(|mention| mention == name)
    }

    #[test]
    fn names_are_told_with_their_schemas() {
        assert!(has("alter table other.orders add x int", "other.orders"));
        assert!(!has("alter table other.orders add x int", "orders"));
        assert!(has("comment on table app.public.\"Orders\" is 'orders'", "public.Orders"));
        assert!(
            has("drop table orders, other . items", "orders") && has("drop table orders, other . items", "other.items")
        );
    }

    #[test]
    fn a_relation_is_told_by_the_name_that_it_will_have() {
        assert!(has("alter table other.a rename to orders", "other.orders"));
        assert!(!has("alter table other.a rename to orders", "orders"));
        assert!(has("alter table a rename to orders", "orders"));
        assert!(has("alter table only other.orders * set schema public", "public.orders"));
        assert!(has("alter view if exists orders set schema public", "public.orders"));
        assert!(has("create schema if not exists public create table orders ()", "public.orders"));
        assert!(has("import foreign schema far limit to (orders) from server s into public", "public.orders"));
        assert!(has("create schema authorization bob create table orders ()", "bob.orders"));
    }

    #[test]
    fn what_is_cut_off_is_no_reason_to_fail() {
        for text in ["alter table rename to", "rename to", "set schema", ". a", "create schema", "* rename to x"] {
            of(text);
        }
    }
}
