//! What a shard's catalog says of one table, as far as fan-out depends on it.

use super::client::{Client, Row, identifier, literal};
use crate::catalog::model::Oid;
use crate::config::model::{Distribution, Table};
use crate::error::Error;
use crate::plan::value::Kind;

/// One table as one shard has it.
pub(super) struct Shape {
    /// `pg_class.relkind`
    pub(super) kind: String,
    /// `pg_class.relpersistence`
    pub(super) persistence: String,
    /// Whether row-level security is enabled.
    pub(super) row_security: bool,
    /// How many rows the server believes there are; negative where it does not know.
    pub(super) estimated_rows: f64,
    /// Bytes on disk.
    pub(super) bytes: f64,
    /// Live columns in order.
    pub(super) columns: Vec<Column>,
    /// Triggers and rules of the user's, each with what it is.
    pub(super) hooks: Vec<String>,
    /// Unique and exclusion constraints and indexes without the shard key.
    pub(super) beyond: Vec<String>,
    /// Pairs of columns of each foreign key.
    pub(super) foreign: Vec<Foreign>,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    /// As `format_type` writes it, with its modifier.
    pub(super) type_name: String,
    pub(super) type_oid: Oid,
    pub(super) not_null: bool,
    /// `"schema"."name"`, empty where the type has none.
    pub(super) collation: String,
    /// Whether equal means equal bytes.
    pub(super) deterministic: bool,
    /// Whether it sorts by bytes.
    pub(super) byte_order: bool,
    /// Whether its values come from a sequence of the shard's own.
    pub(super) sequence: bool,
    /// The step and the first value of that sequence, where the column owns it.
    pub(super) steps: Option<(i64, i64)>,
}

/// One pair of columns of a foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Foreign {
    pub(super) name: String,
    pub(super) column: String,
    pub(super) target: (String, String),
    pub(super) target_column: String,
}

impl Shape {
    /// The column of that name.
    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// The table's name as SQL.
pub(super) fn sql_name(table: &Table) -> String {
    format!("{}.{}", identifier(&table.schema), identifier(&table.name))
}

/// Reads a table's shape; `None` if there is no such table.
pub(super) async fn read(client: &mut Client, table: &Table) -> Result<Option<Shape>, Error> {
    let sql = format!(
        "SELECT c.oid, c.relkind, c.relpersistence, c.relrowsecurity, c.reltuples, pg_total_relation_size(c.oid) \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname ={} AND c.relname ={}",
        literal(&table.schema),
        literal(&table.name)
    );
    let Some(row) = client.rows(&sql).await?.into_iter().next() else { return Ok(None) };
    let oid: Oid = text(&row, 0).parse().unwrap_or(0);
    let key = table.distribution.key();
    let shape = Shape {
        kind: text(&row, 1),
        persistence: text(&row, 2),
        row_security: flag(&row, 3),
        estimated_rows: text(&row, 4).parse().unwrap_or(-1.0),
        bytes: text(&row, 5).parse().unwrap_or(0.0),
        columns: columns(client, oid, &sql_name(table)).await?,
        hooks: hooks(client, oid).await?,
        beyond: if key.is_empty() { Vec::new() } else { beyond(client, oid, key).await? },
        foreign: foreign(client, oid).await?,
    };
    Ok(Some(shape))
}

fn text(row: &Row, index: usize) -> String {
    row.get(index).cloned().flatten().unwrap_or_default()
}

fn flag(row: &Row, index: usize) -> bool {
    text(row, index) == "t"
}

async fn columns(client: &mut Client, oid: Oid, name: &str) -> Result<Vec<Column>, Error> {
    let name = literal(name);
    let sql = format!(
        "SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attnotnull, \
           coalesce(quote_ident(n.nspname) || '.' || quote_ident(co.collname), ''), \
           coalesce(co.collisdeterministic, true), \
           coalesce(co.collname IN ('C', 'POSIX', 'ucs_basic', 'pg_c_utf8') \
             OR (co.collname = 'default' AND d.datcollate IN ('C', 'POSIX')), false), \
           a.attidentity <> '' OR coalesce(pg_get_expr(f.adbin, f.adrelid) LIKE '%nextval(%', false), \
           s.seqincrement, s.seqstart \
         FROM pg_attribute a LEFT JOIN pg_collation co ON co.oid = a.attcollation \
           LEFT JOIN pg_namespace n ON n.oid = co.collnamespace \
           LEFT JOIN pg_attrdef f ON f.adrelid = a.attrelid AND f.adnum = a.attnum \
           LEFT JOIN pg_sequence s ON s.seqrelid = pg_get_serial_sequence({name}, a.attname)::regclass \
           JOIN pg_database d ON d.datname = current_database() \
         WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    );
    let column = |row: &Row| Column {
        name: text(row, 0),
        type_name: text(row, 1),
        type_oid: text(row, 2).parse().unwrap_or(0),
        not_null: flag(row, 3),
        collation: text(row, 4),
        deterministic: flag(row, 5),
        byte_order: flag(row, 6),
        sequence: flag(row, 7),
        steps: text(row, 8).parse().ok().zip(text(row, 9).parse().ok()),
    };
    Ok(client.rows(&sql).await?.iter().map(column).collect())
}

async fn hooks(client: &mut Client, oid: Oid) -> Result<Vec<String>, Error> {
    let sql = format!(
        "SELECT 'trigger ' || quote_ident(tgname) FROM pg_trigger WHERE tgrelid = {oid} AND NOT tgisinternal \
         UNION ALL SELECT 'rule ' || quote_ident(rulename) FROM pg_rewrite \
           WHERE ev_class = {oid} AND rulename <> '_RETURN' ORDER BY 1"
    );
    Ok(client.rows(&sql).await?.iter().map(|row| text(row, 0)).collect())
}

async fn beyond(client: &mut Client, oid: Oid, key: &[String]) -> Result<Vec<String>, Error> {
    let count = key.len();
    let key = format!("IN ({})", key.iter().map(|column| literal(column)).collect::<Vec<_>>().join(","));
    let sql = format!(
        "SELECT 'unique index ' || quote_ident(c.relname) FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid \
         WHERE x.indrelid = {oid} AND x.indisunique AND {count} <> ( \
           SELECT count(DISTINCT a.attnum) FROM unnest((x.indkey::int2[])[0:x.indnkeyatts - 1]) k(attnum) \
             JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.attnum WHERE a.attname {key}) \
         UNION ALL SELECT 'exclusion constraint ' || quote_ident(o.conname) FROM pg_constraint o \
         WHERE o.conrelid = {oid} AND o.contype = 'x' AND {count} <> ( \
           SELECT count(DISTINCT a.attnum) FROM unnest(o.conkey, o.conexclop) k(attnum, operator) \
             JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.attnum \
             JOIN pg_operator p ON p.oid = k.operator WHERE a.attname {key} AND p.oprname = '=') ORDER BY 1"
    );
    Ok(client.rows(&sql).await?.iter().map(|row| text(row, 0)).collect())
}

async fn foreign(client: &mut Client, oid: Oid) -> Result<Vec<Foreign>, Error> {
    let sql = format!(
        "SELECT o.conname, a.attname, n.nspname, c.relname, b.attname FROM pg_constraint o \
           CROSS JOIN unnest(o.conkey, o.confkey) k(own, other) \
           JOIN pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = k.own \
           JOIN pg_attribute b ON b.attrelid = o.confrelid AND b.attnum = k.other \
           JOIN pg_class c ON c.oid = o.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE o.conrelid = {oid} AND o.contype = 'f' AND o.conparentid = 0 ORDER BY 1, 2"
    );
    let pair = |row: &Row| Foreign {
        name: text(row, 0),
        column: text(row, 1),
        target: (text(row, 2), text(row, 3)),
        target_column: text(row, 4),
    };
    Ok(client.rows(&sql).await?.iter().map(pair).collect())
}

/// Why pgherd cannot tell a row's shard by this column, if it cannot.
pub(super) fn unsupported_key(distribution: &Distribution, column: &Column) -> Option<String> {
    let Some(kind) = Kind::of(column.type_oid) else {
        return Some(format!("pgherd does not read keys of type {}", column.type_name));
    };
    if kind.is_collatable() && !column.deterministic {
        return Some("its collation calls texts equal that differ in bytes".into());
    }
    match distribution {
        Distribution::Hash { .. } if matches!(kind, Kind::Float4 | Kind::Float8 | Kind::Time | Kind::Interval) => {
            Some(format!("pgherd does not hash keys of type {}", column.type_name))
        }
        Distribution::Range { .. } if kind == Kind::Bpchar => {
            Some(format!("pgherd does not order keys of type {}", column.type_name))
        }
        Distribution::Range { .. } if kind.is_collatable() && !column.byte_order => {
            Some("pgherd orders texts by their bytes, but its collation is not C".into())
        }
        _ => None,
    }
}
