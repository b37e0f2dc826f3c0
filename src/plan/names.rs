//! Which relations a statement's names may mean.

use std::sync::Arc;

use crate::catalog::model::{Catalog, Relation};
use crate::sql::facts::Name;

/// Every relation that `name` may mean. More than one: PostgreSQL passes over schemas that the role may not use, which the catalog
/// does not show, so that any later one of the path may be meant.
pub(crate) fn candidates<'a>(name: &Name, catalog: &'a Catalog, search_path: &[Box<str>]) -> Vec<&'a Arc<Relation>> {
    match &name.schema {
        Some(schema) => catalog.relation(schema, &name.name).into_iter().collect(),
        None => search_path.iter().filter_map(|schema| catalog.relation(schema, &name.name)).collect(),
    }
}

/// Whether the relation is PostgreSQL's own.
pub(crate) fn is_system(relation: &Relation) -> bool {
    matches!(&*relation.schema, "pg_catalog" | "information_schema")
}

/// The name as people write it.
pub(crate) fn display(name: &Name) -> String {
    match &name.schema {
        Some(schema) => format!("{schema}.{}", name.name),
        None => name.name.to_string(),
    }
}
