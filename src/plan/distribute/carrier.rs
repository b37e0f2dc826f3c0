//! How rows of one query travel to servers that insert them: one array parameter for each column.

use super::refuse::refuse;
use super::ship::{is_portable, quoted, type_name};
use crate::catalog::model::{Catalog, FIRST_USER_OID, Oid, Type};
use crate::plan::Refusal;

/// How the values of one column travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// The type's name, as it is written.
    name: Box<str>,
    /// In what form.
    pub form: Carried,
    /// What becomes of the column in a table that is made of it: its type with its modifier, and its name.
    becomes: Option<(Box<str>, Box<str>)>,
}

/// The form in which values travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// A binary array of that element type.
    Binary(Oid),
    /// An array of the type, as text.
    Text,
    /// An array of texts that are cast: what an array cannot hold as one element.
    Cast,
}

impl Carrier {
    /// The carrier of a column of that type.
    ///
    /// # Errors
    /// Values of the type cannot be carried exactly.
    pub fn of(type_oid: Oid, catalog: &Catalog) -> Result<Self, Refusal> {
        let unfit = |name: &str| {
            let message = format!("INSERT ... SELECT of rows that move, with a column of type {name}");
            refuse("type", message, "cast the column to a type of PostgreSQL's own")
        };
        let known = catalog.types.get(&type_oid).ok_or_else(|| unfit("unknown"))?;
        let name = format!("{}.{}", quoted(&known.schema), quoted(&known.name)).into();
        let is_own = type_oid < FIRST_USER_OID;
        let form = match known.kind {
            _ if known.element != 0 => {
                let element = catalog.types.get(&known.element).ok_or_else(|| unfit(&known.name))?;
                is_element(element, known.element).then_some(Carried::Cast)
            }
            'b' if is_own && is_portable(&known.name) => Some(Carried::Binary(type_oid)),
            'e' => Some(Carried::Text),
            // Types whose arrays are written with commas.
            'b' if is_own || ["citext", "hstore", "ltree", "vector"].contains(&&*known.name) => Some(Carried::Text),
            'r' | 'm' if is_own => Some(Carried::Binary(type_oid)).filter(|_| is_portable(&known.name)),
            _ => None,
        };
        // A cast of a user's could be taken for the type's own way of reading texts.
        let form = form.filter(|form| *form != Carried::Cast || !catalog.has_user_casts);
        Ok(Self { name, form: form.ok_or_else(|| unfit(&known.name))?, becomes: None })
    }

    /// The same for a column of a table that is made of the rows.
    ///
    /// # Errors
    /// A type modifier that pgherd does not know how to write.
    pub fn becoming(self, name: &str, (type_oid, typmod): (Oid, i32), catalog: &Catalog) -> Result<Self, Refusal> {
        let type_name = type_name(type_oid, typmod, catalog).ok_or_else(|| {
            let message = format!("CREATE TABLE AS over shards with the type modifier of column \"{name}\"");
            refuse("type", message, "cast the column to a type without one")
        })?;
        Ok(Self { becomes: Some((type_name.into(), quoted(name).into())), ..self })
    }

    /// The format code that the column's values are asked in.
    pub fn format(&self) -> i16 {
        i16::from(matches!(self.form, Carried::Binary(_)))
    }
}

/// Whether an array of such elements can be carried as a text that means the same everywhere.
fn is_element(element: &Type, oid: Oid) -> bool {
    const EXACT: [&str; 15] = [
        "bool", "int2", "int4", "int8", "text", "varchar", "bpchar", "name", "numeric", "uuid", "json", "jsonb",
        "bytea", "inet", "cidr",
    ];
    element.kind == 'e' || (oid < FIRST_USER_OID && EXACT.contains(&&*element.name))
}

/// The column as it is selected.
pub(super) fn selected(column: &Carrier, at: usize) -> String {
    let value = value(column, at);
    match &column.becomes {
        Some((type_name, name)) => format!("CAST({value} AS {type_name}) AS {name}"),
        None => value,
    }
}

/// The value of that column.
pub(super) fn value(column: &Carrier, at: usize) -> String {
    match column.form {
        Carried::Cast => format!("CAST(pgherd.\"{at}\" AS {})", column.name),
        _ => format!("pgherd.\"{at}\""),
    }
}

/// The arrays as rows; the first of them is that parameter.
pub(super) fn rows_from(columns: &[Carrier], first: usize) -> String {
    let (mut arrays, mut names) = (Vec::new(), Vec::new());
    for (at, column) in columns.iter().enumerate() {
        let name = if column.form == Carried::Cast { "pg_catalog.text" } else { &column.name };
        arrays.push(format!("pg_catalog.unnest(${}::{name}[])", first + at));
        names.push(format!("\"{at}\""));
    }
    format!("ROWS FROM ({}) AS pgherd({})", arrays.join(", "), names.join(", "))
}
