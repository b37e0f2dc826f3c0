//! How one table travels: which columns, in which form, into which temporary table.

use std::collections::BTreeSet;

use super::filters::Filter;
use super::model::Shipment;
use super::refuse::refuse;
use crate::catalog::model::{Catalog, Column, Oid, Relation, RelationKind, Type};
use crate::plan::Refusal;

/// `default`
const DEFAULT_COLLATION: Oid = 100;

/// Objects with smaller oids are PostgreSQL's own, with the same oids everywhere.
const FIRST_USER_OID: Oid = 16384;

/// PostgreSQL's own types whose binary form holds nothing that differs from server to server.
const BINARY: &[&str] = &[
    "bool",
    "bytea",
    "char",
    "name",
    "int8",
    "int2",
    "int4",
    "text",
    "oid",
    "json",
    "jsonb",
    "xml",
    "point",
    "lseg",
    "path",
    "box",
    "polygon",
    "line",
    "circle",
    "float4",
    "float8",
    "money",
    "macaddr",
    "macaddr8",
    "inet",
    "cidr",
    "bpchar",
    "varchar",
    "date",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
    "timetz",
    "bit",
    "varbit",
    "numeric",
    "uuid",
    "tsvector",
    "tsquery",
    "int4range",
    "numrange",
    "tsrange",
    "tstzrange",
    "daterange",
    "int8range",
    "int4multirange",
    "nummultirange",
    "tsmultirange",
    "tstzmultirange",
    "datemultirange",
    "int8multirange",
    "pg_lsn",
];

/// Indexes of one table at most.
const MOST_INDEXES: usize = 4;

/// Which columns of a table a statement may mean.
#[derive(Debug)]
pub(super) enum Columns {
    /// Any.
    All,
    /// Those that it names.
    Named(BTreeSet<String>),
}

/// What shipments are made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shipping<'a> {
    /// The shards' catalog.
    pub(super) catalog: &'a Catalog,
    /// The coordinator's.
    pub(super) coordinator: &'a Catalog,
    /// Whether `client_encoding` is the servers' own: in binary form XML names any other, and keeps that.
    pub(super) same_encoding: bool,
}

impl Shipping<'_> {
    /// Texts must sort and compare on the coordinator as they do on the shards.
    pub(super) fn check_default_collation(&self) -> Result<(), Refusal> {
        if self.catalog.default_collation.is_some()
            && self.catalog.default_collation == self.coordinator.default_collation
        {
            return Ok(());
        }
        Err(refuse(
            "coordinator",
            "the coordinator's database sorts texts otherwise than the shards'",
            "create the coordinator's database with the shards' locale; pgherd check tells more",
        ))
    }

    /// The shipment of a relation from those of the plan's shards.
    pub(super) fn shipment(
        &self,
        relation: &Relation,
        columns: &Columns,
        from: Vec<usize>,
        has_group_by: bool,
        indexes: Option<&BTreeSet<Vec<Box<str>>>>,
        filter: Option<&Filter>,
    ) -> Result<Shipment, Refusal> {
        let is_table = matches!(relation.kind, RelationKind::Table | RelationKind::PartitionedTable);
        if !is_table || relation.columns.is_empty() {
            let message = format!("\"{}\" is not a plain table", relation.name);
            return Err(refuse("view", message, "name the tables that it is made of"));
        }
        let chosen: Vec<&Column> = match columns {
            Columns::All => relation.columns.iter().collect(),
            Columns::Named(names) => {
                let named: Vec<&Column> = relation.columns.iter().filter(|it| names.contains(&*it.name)).collect();
                // A table without columns has no COPY worth the name.
                if named.is_empty() { relation.columns.iter().take(1).collect() } else { named }
            }
        };
        let is_binary = chosen.iter().all(|column| self.is_binary(column.type_oid));
        let name = quoted(&relation.name);
        let full = format!("{}.{name}", quoted(&relation.schema));
        let list = chosen.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ");
        let definitions: Result<Vec<String>, Refusal> = chosen.iter().map(|column| self.definition(column)).collect();
        let primary = &relation.primary_key;
        let has_key = has_group_by
            && !primary.is_empty()
            && primary.iter().all(|part| chosen.iter().any(|column| column.name == *part));
        let key = has_key.then(|| {
            let columns = primary.iter().map(|part| quoted(part)).collect::<Vec<_>>().join(", ");
            format!("ALTER TABLE pg_temp.{name} ADD PRIMARY KEY ({columns})").into()
        });
        let is_sortable =
            |name: &str| chosen.iter().any(|column| *column.name == *name && self.is_sortable(column.type_oid));
        let mut tune: Vec<Box<str>> = Vec::new();
        for columns in indexes
            .into_iter()
            .flatten()
            .filter(|columns| columns.iter().all(|name| is_sortable(name)))
            .take(MOST_INDEXES)
        {
            let columns = columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
            tune.push(format!("CREATE INDEX ON pg_temp.{name} ({columns})").into());
        }
        tune.push(format!("ANALYZE pg_temp.{name}").into());
        // Conditions are judged under the client's own settings, which rows in text form do not travel under.
        let rows = filter.filter(|_| is_binary).map_or_else(String::new, |filter| {
            let alias = filter.alias.as_ref().map_or_else(String::new, |alias| format!(" AS {}", quoted(alias)));
            format!("{alias} WHERE {}", filter.sql)
        });
        let format = if is_binary { " (FORMAT binary)" } else { "" };
        let select = |rows: &str| format!("SELECT {list} FROM {full}{rows}").into();
        Ok(Shipment {
            table: format!("{}.{}", relation.schema, relation.name).into(),
            from,
            create: format!("CREATE TEMPORARY TABLE {name} ({})", definitions?.join(", ")).into(),
            select: select(&rows),
            select_all: (!rows.is_empty()).then(|| select("")),
            name: name.as_str().into(),
            is_of_views: false,
            load: format!("COPY pg_temp.{name} FROM STDIN{format}").into(),
            key,
            tune,
            is_binary,
            key_lists: Vec::new(),
        })
    }

    fn definition(&self, column: &Column) -> Result<String, Refusal> {
        let name = &column.name;
        let missing = |what: &str| {
            refuse(
                "coordinator",
                format!("the coordinator does not have the {what} of column \"{name}\" as the shards have it"),
                "create it there alike; pgherd check tells more",
            )
        };
        let known = self.catalog.types.get(&column.type_oid).ok_or_else(|| missing("type"))?;
        if column.type_oid >= FIRST_USER_OID && !self.has_type(known) {
            return Err(missing("type"));
        }
        let modifier = modifier(known, column.typmod).unwrap_or_default();
        let mut text = format!("{} {}.{}{modifier}", quoted(name), quoted(&known.schema), quoted(&known.name));
        if column.collation != 0 && column.collation != known.collation {
            text += &format!(" COLLATE {}", self.collation(column.collation).ok_or_else(|| missing("collation"))?);
        }
        Ok(text)
    }

    /// Whether the coordinator has a type of that name and kind; of enums, with the same labels in the same order.
    fn has_type(&self, wanted: &Type) -> bool {
        self.coordinator.types.values().any(|it| {
            it.name == wanted.name && it.schema == wanted.schema && it.kind == wanted.kind && it.labels == wanted.labels
        })
    }

    fn collation(&self, oid: Oid) -> Option<String> {
        if oid == DEFAULT_COLLATION {
            return Some("pg_catalog.\"default\"".into());
        }
        let wanted = self.catalog.collations.get(&oid)?;
        let is_own = oid >= FIRST_USER_OID;
        let is_there = self.coordinator.collations.values().any(|it| it == wanted);
        (is_there || !is_own).then(|| format!("{}.{}", quoted(&wanted.schema), quoted(&wanted.name)))
    }

    /// Whether values of the type can travel in binary form.
    fn is_binary(&self, oid: Oid) -> bool {
        let Some(known) = self.catalog.types.get(&oid) else { return false };
        let is_own = oid < FIRST_USER_OID && &*known.schema == "pg_catalog";
        match known.kind {
            'e' => true,
            'd' => self.is_binary(known.base),
            // An array names its element's type by oid.
            _ if known.element != 0 && is_own => self.is_plain(known.element),
            _ => is_own && self.is_carried(&known.name),
        }
    }

    /// Whether it has an order that indexes can be made of.
    fn is_sortable(&self, oid: Oid) -> bool {
        const SORTABLE: &[&str] = &[
            "int2",
            "int4",
            "int8",
            "text",
            "varchar",
            "bpchar",
            "numeric",
            "date",
            "timestamp",
            "timestamptz",
            "uuid",
            "float4",
            "float8",
        ];
        self.catalog.types.get(&oid).is_some_and(|known| oid < FIRST_USER_OID && SORTABLE.contains(&&*known.name))
    }

    fn is_plain(&self, oid: Oid) -> bool {
        self.catalog.types.get(&oid).is_some_and(|known| oid < FIRST_USER_OID && self.is_carried(&known.name))
    }

    fn is_carried(&self, name: &str) -> bool {
        BINARY.contains(&name) && (self.same_encoding || name != "xml")
    }
}

/// A type modifier as it is written behind the type's name, as far as pgherd knows how.
fn modifier(known: &Type, typmod: i32) -> Option<String> {
    /// `VARHDRSZ`, which the modifiers of types of variable length hold.
    const HEADER: i32 = 4;
    if typmod < 0 || &*known.schema != "pg_catalog" {
        return None;
    }
    match &*known.name {
        "varchar" | "bpchar" => Some(format!("({})", typmod.checked_sub(HEADER)?)),
        "bit" | "varbit" | "time" | "timetz" | "timestamp" | "timestamptz" => Some(format!("({typmod})")),
        "numeric" => {
            let packed = typmod.checked_sub(HEADER)?;
            // The scale has eleven bits and a sign, since PostgreSQL 15.
            let scale = ((packed & 0x7ff) ^ 1024) - 1024;
            Some(format!("({}, {scale})", (packed >> 16) & 0xffff))
        }
        "interval" => Some(format!("({}, {})", (typmod >> 16) & 0x7fff, typmod & 0xffff)),
        _ => None,
    }
}

/// A column's type with its modifier, as it is written in a cast; `None` where pgherd does not know how.
pub(super) fn type_of(column: &Column, catalog: &Catalog) -> Option<String> {
    type_name(column.type_oid, column.typmod, catalog)
}

/// As [`type_of`], by type and modifier.
pub(super) fn type_name(type_oid: Oid, typmod: i32, catalog: &Catalog) -> Option<String> {
    let known = catalog.types.get(&type_oid)?;
    let modifier = match typmod {
        -1 => String::new(),
        typmod => modifier(known, typmod)?,
    };
    Some(format!("{}.{}{modifier}", quoted(&known.schema), quoted(&known.name)))
}

/// Whether the binary form of PostgreSQL's own type of that name holds nothing that differs from server to server.
pub(super) fn is_portable(name: &str) -> bool {
    BINARY.contains(&name)
}

/// An identifier as it is written so that PostgreSQL reads exactly this name.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
