//! Purges as operators ask for them, by database, table or statement, carried out on the caches of databases.

use std::sync::Arc;

use super::context::Database;
use crate::cache::{self, ResultCache};
use crate::catalog::model::Catalog;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// What is to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// Everything.
    All,
    /// What was read from a table, its partitions and children, or a view and what it is made of.
    Table(TableName),
    /// Answers to statements of that fingerprint.
    Statement(u128),
}

/// A table's name. Without a schema: every table of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// Its schema, if said.
    pub schema: Option<String>,
    /// Its own name.
    pub name: String,
}

impl TableName {
    /// `name` or `schema.name`, as SQL has names: folded to lower case unless in double quotes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = vec![String::new()];
        let mut chars = text.trim().chars().peekable();
        let mut is_quoted = false;
        while let Some(c) = chars.next() {
            let part = parts.last_mut()?;
            match c {
                '"' if is_quoted && chars.next_if_eq(&'"').is_some() => part.push('"'),
                '"' => is_quoted = !is_quoted,
                '.' if !is_quoted => parts.push(String::new()),
                c if is_quoted => part.push(c),
                c if c.is_whitespace() => return None,
                c => part.extend(c.to_lowercase()),
            }
        }
        Self::of(parts).filter(|_| !is_quoted)
    }

    /// One part, or two.
    pub fn of(mut parts: Vec<String>) -> Option<Self> {
        if parts.iter().any(String::is_empty) || parts.len() > 2 {
            return None;
        }
        let name = parts.pop()?;
        Some(Self { schema: parts.pop(), name })
    }

    /// Whatever an answer that was read from a table of that name depends on.
    fn relations(&self, catalog: &Catalog) -> Vec<u32> {
        let is_it =
            |schema: &str, name: &str| name == self.name && self.schema.as_deref().is_none_or(|it| it == schema);
        let named = catalog.relations.values().filter(|relation| is_it(&relation.schema, &relation.name));
        let mut relations: Vec<u32> = named.flat_map(|relation| relation.reads.iter().copied()).collect();
        relations.sort_unstable();
        relations.dedup();
        relations
    }
}

/// A fingerprint as EXPLAIN (ROUTE) and SHOW CACHE ENTRIES show it: 32 hexadecimal digits.
pub fn fingerprint(text: &str) -> Option<u128> {
    let is_one = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| is_one)
}

/// Carries a purge out on the caches of these databases, and waits until the fleet has been told. Returns how many answers went from
/// this process's memory.
///
/// # Errors
/// None of them has a cache, none knows the table, or Redis cannot be told.
pub async fn purge(databases: &[Arc<Database>], what: &Purge) -> Result<u64, Error> {
    // Databases of one primary may share a cache.
    let mut caches: Vec<(Arc<ResultCache>, Vec<u32>)> = Vec::new();
    let of_primary = databases.iter().filter_map(|database| Some((database.cache.as_ref()?, &database.catalog)));
    let of_shards = databases.iter().flat_map(|database| &database.shard_caches);
    for (cache, catalog) in of_primary.chain(of_shards.map(|known| (&known.cache, &known.catalog))) {
        let relations = match what {
            Purge::Table(table) => table.relations(&catalog.current()),
            Purge::All | Purge::Statement(_) => Vec::new(),
        };
        match caches.iter_mut().find(|(known, _)| Arc::ptr_eq(known, cache)) {
            Some((_, known)) => known.extend(relations),
            None => caches.push((Arc::clone(cache), relations)),
        }
    }
    if caches.is_empty() {
        let error =
            Error::new(ErrorKind::Refused, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, "there is no result cache");
        return Err(error.hint("[cache] enabled turns it on."));
    }
    if let Purge::Table(table) = what {
        caches.retain(|(_, relations)| !relations.is_empty());
        if caches.is_empty() {
            let message = format!("no table or view \"{}\" is known", table.name);
            return Err(Error::new(ErrorKind::Refused, SqlState::UNDEFINED_TABLE, message)
                .hint("Write schema.name; a name with capitals needs double quotes."));
        }
    }
    let purged: Vec<cache::Purged> = caches
        .iter()
        .map(|(cache, relations)| {
            cache.purge(match what {
                Purge::All => cache::Purge::All,
                Purge::Table(_) => cache::Purge::Relations(relations),
                Purge::Statement(fingerprint) => cache::Purge::Statement(*fingerprint),
            })
        })
        .collect();
    let mut entries = 0;
    for told in futures_util::future::join_all(purged.into_iter().map(cache::Purged::told)).await {
        entries += told?;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(Option<String>, String)> {
        TableName::parse(text).map(|table| (table.schema, table.name))
    }

    #[test]
    fn names_are_read_as_sql_has_them() {
        assert_eq!(parsed("Orders"), Some((None, "orders".into())));
        assert_eq!(parsed("shop.Orders"), Some((Some("shop".into()), "orders".into())));
        assert_eq!(parsed("\"My.Shop\".\"a\"\"b\""), Some((Some("My.Shop".into()), "a\"b".into())));
        for wrong in ["", ".", "a.", ".a", "a.b.c", "\"a", "a b"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_fingerprint_is_32_digits() {
        assert_eq!(fingerprint("0000000000000000000000000000002A"), Some(42));
        for wrong in ["2a", "+000000000000000000000000000002a", "0000000000000000000000000000002g", ""] {
            assert_eq!(fingerprint(wrong), None, "{wrong}");
        }
    }
}
