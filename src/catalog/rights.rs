//! What one role may read, as the server itself says: asked for when answers are to be shared among roles.

use std::collections::HashSet;

use super::model::Oid;
use super::queries::{DIGEST, PRIVILEGES};

/// What one role may read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Tables and views that it may read as a whole, in schemas that it may use.
    readable: HashSet<Oid>,
    /// Schemas that it may use.
    schemas: HashSet<Box<str>>,
    /// Functions of PostgreSQL's, other than volatile ones, that it may not call.
    forbidden: HashSet<Box<str>>,
    /// Whether a function behind an operator, a cast or an aggregate is among them.
    lacks_support: bool,
}

impl Rights {
    /// The rights that the rows of an answer to [`question`] tell.
    pub fn of_rows(rows: Vec<Vec<Option<String>>>) -> Self {
        let mut rights = Self::default();
        for row in rows {
            let Ok([Some(sort), Some(value)]) = <[Option<String>; 2]>::try_from(row) else { continue };
            match (sort.as_str(), value.parse()) {
                ("r", Ok(oid)) => drop(rights.readable.insert(oid)),
                ("s", _) => drop(rights.schemas.insert(value.into())),
                ("f", _) => drop(rights.forbidden.insert(value.into())),
                _ => rights.lacks_support = true,
            }
        }
        rights
    }

    /// Whether the role may read all of these relations, use all of these schemas, and call what PostgreSQL lets everybody call.
    pub fn allow(&self, relations: &[Oid], schemas: &[Box<str>]) -> bool {
        relations.iter().all(|oid| self.readable.contains(oid))
            && schemas.iter().all(|schema| self.schemas.contains(schema))
            && !self.lacks_support
            && self.forbidden.iter().all(|name| is_forbidden_as_a_rule(name))
    }
}

/// Functions that are not volatile and that PostgreSQL does not let everybody call. No answer that reads one is cached.
fn is_forbidden_as_a_rule(name: &str) -> bool {
    matches!(name, "pg_config" | "pg_replication_origin_oid")
}

/// Asks for the state of the catalog that rights belong to, and for its privileges.
pub const STATE: [&str; 2] = [DIGEST, PRIVILEGES];

/// Asks for the rights of a role, given as a literal of its name, all from PostgreSQL's own functions.
pub fn question(role: &str) -> String {
    let role = format!("{role}::name");
    format!(
        "SELECT 'r', c.oid::text FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relpersistence <> 't' \
           AND has_schema_privilege({role}, c.relnamespace, 'USAGE') AND has_table_privilege({role}, c.oid, 'SELECT') \
         UNION ALL SELECT 's', n.nspname FROM pg_catalog.pg_namespace n WHERE has_schema_privilege({role}, n.oid, 'USAGE') \
         UNION ALL SELECT 'f', p.proname FROM pg_catalog.pg_proc p WHERE p.proacl IS NOT NULL AND p.provolatile <> 'v' \
           AND p.pronamespace = 'pg_catalog'::regnamespace AND NOT has_function_privilege({role}, p.oid, 'EXECUTE') \
         UNION ALL SELECT 'o', '' WHERE EXISTS (SELECT FROM pg_catalog.pg_proc p WHERE p.proacl IS NOT NULL \
           AND NOT has_function_privilege({role}, p.oid, 'EXECUTE') AND (p.prokind IN ('a', 'w') \
             OR p.oid IN (SELECT oprcode FROM pg_catalog.pg_operator) OR p.oid IN (SELECT castfunc FROM pg_catalog.pg_cast)))"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_may_do_what_all_of_it_allows() {
        let rights = |forbidden: &[&str], lacks_support| Rights {
            readable: HashSet::from([1, 2]),
            schemas: HashSet::from(["pg_catalog".into(), "public".into()]),
            forbidden: forbidden.iter().map(|name| (*name).into()).collect(),
            lacks_support,
        };
        let path: [Box<str>; 2] = ["pg_catalog".into(), "public".into()];
        assert!(rights(&["pg_config"], false).allow(&[1, 2], &path));
        assert!(!rights(&[], false).allow(&[1, 3], &path));
        assert!(!rights(&[], false).allow(&[1], &["own".into()]));
        assert!(!rights(&["upper"], false).allow(&[1], &path));
        assert!(!rights(&[], true).allow(&[1], &path));
    }
}
