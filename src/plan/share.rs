//! Whether roles may share one answer, and what each of them must be allowed to do for it.

use super::functions::Called;
use super::rules::Input;
use crate::catalog::model::{Catalog, Oid, Relation};
use crate::sql::facts::Statement;

/// Words of a text that name what this module does not look up the privileges of: collations and operators by schema.
const UNSEEN: [&str; 2] = ["collate", "operator"];

/// The relations that a role must be able to read to be given an answer that another role was given; `None` where that is not for the
/// configuration to allow, or where the answer may depend on who asks: by row-level security, by the rights that views and functions
/// run with, by the role's name, by what a name means to whom.
pub(super) fn needs(
    input: &Input<'_>,
    statement: &Statement,
    catalog: &Catalog,
    (named, all): (&[&Relation], &[&Relation]),
    called: &[Called],
) -> Option<Box<[Oid]>> {
    let is_alike = input.cache.share_roles
        && !input.session.has_temporary_objects
        && statement.value_functions.iter().all(|name| matches!(&**name, "current_catalog" | "current_schema"))
        && called.iter().all(|called| !called.user_defined && !matches!(&*called.name, "current_user" | "user"))
        && named.iter().all(|relation| !relation.row_security)
        && all.iter().all(|relation| !relation.security_invoker)
        && all.iter().flat_map(|relation| &relation.columns).all(|column| is_read_alike(column.type_oid))
        && statement.functions.iter().all(|name| takes_no_names(&name.name, catalog))
        && is_of_postgresql(input.text, statement, catalog);
    is_alike.then(|| named.iter().map(|relation| relation.oid).collect())
}

/// Whether the types and operators of the text are PostgreSQL's own, for everybody.
fn is_of_postgresql(text: &str, statement: &Statement, catalog: &Catalog) -> bool {
    let text = text.to_ascii_lowercase();
    let is_users_type =
        |name: &str| catalog.types.values().any(|found| &*found.name == name && &*found.schema != "pg_catalog");
    !UNSEEN.iter().any(|word| text.contains(word))
        && catalog.user_operators.is_empty()
        && !catalog.has_user_casts
        && !statement.casts.iter().any(|name| is_users_type(&name.name))
}

/// Whether values of that type are read from texts in the same way for everybody: types of users may have checks, and `reg*` look names up in
/// schemas that not everybody may use.
pub(crate) fn is_read_alike(type_oid: Oid) -> bool {
    const FIRST_OF_USERS: Oid = 16_384;
    // regproc, regprocedure, regoper, regoperator, regclass, regtype, regconfig, regdictionary, regnamespace, regrole, regcollation
    const OF_NAMES: [Oid; 11] = [24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];
    type_oid < FIRST_OF_USERS && !OF_NAMES.contains(&type_oid)
}

/// Whether no function of that name takes a `reg*`.
fn takes_no_names(function: &str, catalog: &Catalog) -> bool {
    let overloads = catalog.functions.get(function).map(Vec::as_slice).unwrap_or_default();
    overloads.iter().flat_map(|overload| &overload.arguments).all(|argument| is_read_alike(*argument))
}
