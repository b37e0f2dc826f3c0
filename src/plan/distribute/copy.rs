//! `COPY ... FROM STDIN` into a sharded or reference table: how its rows are told apart, and where each belongs.

use std::sync::Arc;

use sqlparser::ast::{CopyLegacyCsvOption, CopyLegacyOption, CopyOption, CopySource, CopyTarget, Statement};

use super::analysis::table;
use super::constant::is_stored_as_is;
use super::model::Input;
use super::refuse::refuse;
use super::scope::parts;
use crate::catalog::model::{Column, DefaultKind, Relation};
use crate::config::model::Distribution;
use crate::plan::shard_key::Layout;
use crate::plan::value::{Kind, Value};
use crate::plan::{Reason, Refusal};
use crate::sql::parse;

/// How rows are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// Lines with backslashes.
    Text {
        /// Between two fields.
        delimiter: u8,
        /// What stands for NULL.
        null: Vec<u8>,
    },
    /// Fields in quotes.
    Csv {
        /// Between two fields.
        delimiter: u8,
        /// Around a field.
        quote: u8,
        /// Before a quote within one.
        escape: u8,
        /// What stands for NULL.
        null: Vec<u8>,
    },
    /// PostgreSQL's binary format.
    Binary,
}

/// A COPY whose rows are spread over shards.
#[derive(Debug, Clone)]
pub struct CopiedIn {
    /// Where each row belongs; `None` for a reference table, whose rows go everywhere.
    layout: Option<Layout>,
    /// Which fields are the shard key, in its columns' order.
    pub fields: Vec<usize>,
    /// How rows are written.
    pub form: Form,
    /// The first line is no row, and every shard gets it.
    pub has_header: bool,
    /// A line `\.` ends the data in CSV too, as it does before PostgreSQL 18; psql of those versions sends one.
    pub ends_by_mark: bool,
    /// How many shards there are.
    pub shards: usize,
    /// Writes under that name come in the same order on all shards.
    pub serial: Option<Box<str>>,
    /// Why it is so.
    pub reason: Reason,
}

/// Where a row belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// On that shard.
    On(usize),
    /// On all of them.
    Everywhere,
    /// Nobody can tell before PostgreSQL has read the key.
    Unreadable,
    /// What it is depends on the lines before it, which no shard has all of.
    Ambiguous,
}

impl CopiedIn {
    /// Where a row belongs whose fields of the key are these; the inner `None` is NULL, the outer one a field that is not there.
    pub fn place<B: AsRef<[u8]>>(&self, mut field: impl FnMut(usize) -> Option<Option<B>>) -> Placed {
        let Some(layout) = &self.layout else { return Placed::Everywhere };
        let mut key = Vec::with_capacity(layout.key.len());
        for (column, &at) in layout.key.iter().zip(&self.fields) {
            let (Some(kind), Some(value)) = (column.kind, field(at)) else { return Placed::Unreadable };
            let value = match value {
                None => None,
                Some(bytes) => {
                    let read = self.read(kind, bytes.as_ref());
                    match read.filter(|value| is_stored_as_is(value, &column.column, kind)) {
                        Some(value) => Some(value),
                        None => return Placed::Unreadable,
                    }
                }
            };
            key.push(value);
        }
        layout.place(&key).map_or(Placed::Unreadable, Placed::On)
    }

    fn read(&self, kind: Kind, bytes: &[u8]) -> Option<Value> {
        match self.form {
            Form::Binary => Value::from_binary(kind, bytes),
            _ => Value::parse(kind, std::str::from_utf8(bytes).ok()?),
        }
    }

    /// Whether rows go to all shards.
    pub fn is_everywhere(&self) -> bool {
        self.layout.is_none()
    }
}

fn refused(what: &str, hint: &str) -> Refusal {
    refuse("copy", format!("{what} in COPY into a sharded or reference table"), hint)
}

/// Plans `COPY table FROM STDIN`.
///
/// # Errors
/// Options or a table that pgherd cannot spread.
pub fn copy_in(input: &Input<'_>) -> Result<Arc<CopiedIn>, Refusal> {
    let form = || {
        refused(
            "this form",
            "use COPY table (columns) FROM STDIN with FORMAT, DELIMITER, NULL, HEADER, QUOTE and ESCAPE",
        )
    };
    let tree = parse::parse(input.text.as_bytes(), input.session.standard_conforming_strings).ok_or_else(form)?;
    let Statement::Copy { source, to: false, target: CopyTarget::Stdin, options, legacy_options, values } = &tree
    else {
        return Err(form());
    };
    let CopySource::Table { table_name, columns } = source else { return Err(form()) };
    // What stands behind the statement is data to sqlparser, and nothing to PostgreSQL.
    if !values.is_empty() || !input.statement.functions.is_empty() {
        return Err(form());
    }
    if !input.session.same_encoding {
        return Err(refused("another client_encoding than the servers'", "use their encoding"));
    }
    let (form, has_header) = read_form(options, legacy_options)?;
    let (schema, name) = parts(table_name).ok_or_else(|| refused("a table's name", "write schema.table"))?;
    let relation = match schema {
        Some(schema) => input.catalog.relation(schema, name),
        None => input.catalog.resolve(input.search_path, name),
    };
    let relation =
        relation.ok_or_else(|| refused("a table that the shards do not have", "create it on every shard"))?;
    let configured =
        table(input.database, relation).ok_or_else(|| refused("a view or partition", "name the table itself"))?;
    if input.database.two_phase.is_none() {
        let hint = "configure database.two_phase: then it is done on all shards or on none";
        return Err(refused("rows of several shards", hint));
    }
    if relation.writes_opaque {
        return Err(refused("a table with triggers or the like", "copy to each shard yourself"));
    }
    let listed: Vec<&str> = match columns.as_slice() {
        [] => relation.columns.iter().filter(|column| !column.is_generated).map(|column| &*column.name).collect(),
        columns => columns.iter().map(|column| column.value.as_str()).collect(),
    };
    let is_reference = matches!(configured.distribution, Distribution::Reference);
    defaults(relation, &listed, is_reference)?;
    let layout = Layout::new(configured, relation, input.catalog, input.database.shards.len());
    let fields: Option<Vec<usize>> = layout.as_ref().map_or(Some(Vec::new()), |layout| {
        layout.key.iter().map(|it| listed.iter().position(|name| **name == *it.column.name)).collect()
    });
    let fields = fields.ok_or_else(|| refused("rows without their shard key", "copy that column too"))?;
    if layout.is_none() && !is_reference {
        return Err(refused("a table without its shard key", "run pgherd check"));
    }
    Ok(Arc::new(CopiedIn {
        layout,
        fields,
        form,
        has_header,
        ends_by_mark: input.catalog.server_version < 180_000,
        shards: input.database.shards.len(),
        serial: is_reference.then(|| format!("{}.{}", relation.schema, relation.name).into()),
        reason: Reason { code: "copy", text: "each row goes to the shard that it belongs to".into() },
    }))
}

fn defaults(relation: &Relation, listed: &[&str], is_reference: bool) -> Result<(), Refusal> {
    let most = if is_reference { DefaultKind::Constant } else { DefaultKind::PerRow };
    let is_wrong = |column: &&Column| column.default > most && !listed.contains(&&*column.name);
    match relation.columns.iter().find(is_wrong) {
        Some(column) => Err(refused(
            &format!("the default of \"{}\", which could be another one on each shard,", column.name),
            "copy that column too",
        )),
        None => Ok(()),
    }
}

fn read_form(options: &[CopyOption], legacy: &[CopyLegacyOption]) -> Result<(Form, bool), Refusal> {
    let unknown = || refused("this option", "use FORMAT, DELIMITER, NULL, HEADER, QUOTE and ESCAPE");
    let (mut format, mut has_header) = ("text".to_owned(), false);
    let (mut delimiter, mut quote, mut escape, mut null) = (None, b'"', None, None);
    let byte = |c: char| u8::try_from(c).ok().filter(u8::is_ascii).ok_or_else(unknown);
    for option in options {
        match option {
            CopyOption::Format(name) => format = name.value.to_ascii_lowercase(),
            CopyOption::Delimiter(c) => delimiter = Some(byte(*c)?),
            CopyOption::Null(text) => null = Some(text.clone().into_bytes()),
            CopyOption::Header(is_there) => has_header = *is_there,
            CopyOption::Quote(c) => quote = byte(*c)?,
            CopyOption::Escape(c) => escape = Some(byte(*c)?),
            CopyOption::Freeze(false) => {}
            _ => return Err(unknown()),
        }
    }
    for option in legacy {
        match option {
            CopyLegacyOption::Binary => format = "binary".into(),
            CopyLegacyOption::Delimiter(c) => delimiter = Some(byte(*c)?),
            CopyLegacyOption::Null(text) => null = Some(text.clone().into_bytes()),
            CopyLegacyOption::Csv(options) => {
                format = "csv".into();
                for option in options {
                    match option {
                        CopyLegacyCsvOption::Header => has_header = true,
                        CopyLegacyCsvOption::Quote(c) => quote = byte(*c)?,
                        CopyLegacyCsvOption::Escape(c) => escape = Some(byte(*c)?),
                        _ => return Err(unknown()),
                    }
                }
            }
            _ => return Err(unknown()),
        }
    }
    let form = match format.as_str() {
        "text" => Form::Text { delimiter: delimiter.unwrap_or(b'\t'), null: null.unwrap_or_else(|| b"\\N".to_vec()) },
        "csv" => Form::Csv {
            delimiter: delimiter.unwrap_or(b','),
            quote,
            escape: escape.unwrap_or(quote),
            null: null.unwrap_or_default(),
        },
        "binary" if !has_header => Form::Binary,
        _ => return Err(unknown()),
    };
    Ok((form, has_header))
}
