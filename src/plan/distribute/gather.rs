//! Statements that PostgreSQL itself merges: what is shipped to the coordinator, and which text runs there.
//!
//! The final statement is the client's own text, in which names mean temporary tables with the shipped rows: `pg_temp` comes
//! first where a name has no schema, and takes the schema's place where it has one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{Expr, ObjectName, SelectItem, SetExpr, Statement, TableFactor, Visit, Visitor};

use super::analysis::table;
use super::functions::Functions;
use super::model::{Distributed, Gathered, Input};
use super::refuse::refuse;
use super::scope::parts;
use super::ship::{Columns, Shipping, quoted};
use super::source::Source;
use super::{correlated, filters, key_lists};
use crate::catalog::model::Relation;
use crate::config::model::Distribution;
use crate::plan::{Reason, Refusal};

/// Plans a SELECT that cannot be streamed, for the reason `why`.
///
/// # Errors
/// It cannot be run on the coordinator either; `why` itself where no coordinator is known.
pub(super) fn plan(
    input: &Input<'_>,
    tree: &Statement,
    source: &Source<'_>,
    why: Refusal,
) -> Result<Distributed, Refusal> {
    let Some(coordinator) = input.coordinator else { return Err(why) };
    if input.statement.locks_rows {
        return Err(refuse("for-update", "row locks over several shards", "tie every sharded table to one shard key"));
    }
    if !input.statement.effects.is_empty() || !input.statement.writes.is_empty() {
        return Err(why);
    }
    let functions = Functions { catalog: input.catalog, pure_functions: input.pure_functions };
    super::gather_check::check(source, functions, coordinator)?;
    if input.parameters.is_none() && input.statement.parameters > 0 {
        return Ok(Distributed::NeedsBind);
    }
    let named = named(tree, input)?;
    if named.relations.is_empty() {
        return Err(why);
    }
    let shipping = Shipping { catalog: input.catalog, coordinator };
    shipping.check_default_collation()?;
    let indexes = correlated::indexes(tree, |name| named.relations.get(name).map(|(relation, _)| relation));
    let filters = filters::filters(
        tree,
        filters::Reader {
            source,
            functions,
            standard_conforming_strings: input.session.standard_conforming_strings,
            // What a CTE shadows is not looked into.
            relation: |name: &str| {
                let known = named.relations.get(name).filter(|_| !named.ctes.contains(name));
                known.map(|(relation, _)| relation)
            },
        },
    );
    let bonds = key_lists::bonds(tree, input.catalog, key_lists::Equals::new(input, coordinator), |name: &str| {
        let known = named.relations.get(name).filter(|_| !named.ctes.contains(name));
        known.map(|(relation, _)| relation)
    });
    let tables: Vec<Box<str>> = named.relations.keys().cloned().collect();
    let identifiers = source.identifiers();
    let is_shipped = |table: &str, column: &str| {
        let takes_all = named.takes_all || named.relations.get(table).is_some_and(|(_, use_)| use_.takes_all);
        takes_all || identifiers.contains(column)
    };
    let all: Vec<usize> = (0..input.database.shards.len()).collect();
    let mut shipments = Vec::new();
    let mut is_sharded = false;
    for (relation, use_) in named.relations.values() {
        let distribution = table(input.database, relation).map(|table| &table.distribution);
        let from = match distribution {
            None => return Err(unknown(&relation.name)),
            Some(Distribution::Reference) => vec![0],
            Some(_) => {
                is_sharded = true;
                all.clone()
            }
        };
        let columns =
            if named.takes_all || use_.takes_all { Columns::All } else { Columns::Named(identifiers.clone()) };
        let (indexes, filter) = (indexes.get(&relation.name), filters.get(&relation.name));
        let mut shipment = shipping.shipment(relation, &columns, from, source.has_group_by(), indexes, filter)?;
        if let Some(bonds) = bonds.get(&relation.name) {
            shipment.key_lists = key_lists::key_lists(bonds, &tables, &relation.name, is_shipped);
        }
        shipments.push(shipment);
    }
    let shards = if is_sharded { all } else { vec![0] };
    let (sql, is_verbatim) = retargeted(source, &shipments_by_name(&named))?;
    Ok(Distributed::Gathered(Arc::new(Gathered {
        shards,
        probe: probe(&named),
        shipments,
        sql: sql.into(),
        is_verbatim,
        same_encoding: input.session.same_encoding,
        reason: Reason { code: why.code, text: format!("it is not streamed: {}", why.message).into() },
    })))
}

/// How a relation is used.
#[derive(Debug, Default)]
struct Use {
    /// Whether every column may be meant: by a whole row, or by their places.
    takes_all: bool,
}

/// Relations that a statement names.
#[derive(Debug, Default)]
struct Named {
    /// By name; a temporary table of one name stands for one table only.
    relations: BTreeMap<Box<str>, (Arc<Relation>, Use)>,
    /// Whether `*` or NATURAL may mean any column.
    takes_all: bool,
    /// Names of CTEs.
    ctes: BTreeSet<Box<str>>,
}

fn named(tree: &Statement, input: &Input<'_>) -> Result<Named, Refusal> {
    let mut reader =
        Reader { input, named: Named::default(), aliases: BTreeMap::new(), ctes: BTreeSet::new(), unknown: None };
    // CTEs first: which of the names they shadow is PostgreSQL's to say.
    reader.ctes = ctes(tree);
    if let ControlFlow::Break(refusal) = tree.visit(&mut reader) {
        return Err(*refusal);
    }
    if let Some(name) = reader.unknown {
        return Err(unknown(&name));
    }
    let Reader { mut named, aliases, ctes, .. } = reader;
    named.ctes = ctes;
    let mut rows = WholeRows { aliases: &aliases, found: BTreeSet::new() };
    let _ = tree.visit(&mut rows);
    for name in rows.found {
        if let Some((_, use_)) = named.relations.get_mut(&name) {
            use_.takes_all = true;
        }
    }
    Ok(named)
}

fn unknown(name: &str) -> Refusal {
    refuse(
        "unsharded-table",
        format!("\"{name}\" does not live on the shards and cannot be joined with tables that do"),
        "make it a reference table, or read it in a statement of its own",
    )
}

fn ctes(tree: &Statement) -> BTreeSet<Box<str>> {
    struct Ctes(BTreeSet<Box<str>>);
    impl Visitor for Ctes {
        type Break = ();
        fn pre_visit_query(&mut self, query: &sqlparser::ast::Query) -> ControlFlow<()> {
            let tables = query.with.iter().flat_map(|with| &with.cte_tables);
            self.0.extend(tables.map(|cte| Box::from(cte.alias.name.value.as_str())));
            ControlFlow::Continue(())
        }
    }
    let mut found = Ctes(BTreeSet::new());
    let _ = tree.visit(&mut found);
    found.0
}

struct Reader<'a> {
    input: &'a Input<'a>,
    named: Named,
    /// Relations' names by what columns are qualified with.
    aliases: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    ctes: BTreeSet<Box<str>>,
    unknown: Option<String>,
}

type Flow = ControlFlow<Box<Refusal>>;

impl Reader<'_> {
    fn relation(&mut self, name: &ObjectName) -> Result<Option<Box<str>>, Refusal> {
        let Some((schema, table)) = parts(name).filter(|_| name.0.len() < 3) else {
            return Err(refuse("from", "a table's name with a database in it", "name schema and table"));
        };
        let catalog = self.input.catalog;
        let found = match schema {
            Some(schema) => catalog.relation(schema, table),
            None => catalog.resolve(self.input.search_path, table),
        };
        let is_cte = schema.is_none() && self.ctes.contains(table);
        let Some(relation) = found else {
            if !is_cte {
                self.unknown.get_or_insert_with(|| table.to_owned());
            }
            return Ok(None);
        };
        if super::analysis::table(self.input.database, relation).is_none() {
            if is_cte && schema.is_none() {
                // Another relation of that name would be found on the coordinator where the CTE is out of sight.
                return Err(refuse("cte", format!("\"{table}\" is a CTE's name and a table's"), "rename the CTE"));
            }
            self.unknown.get_or_insert_with(|| table.to_owned());
            return Ok(None);
        }
        match self.named.relations.get(&relation.name) {
            Some((known, _)) if known.oid != relation.oid => {
                let message = format!("two tables \"{}\" of different schemas", relation.name);
                return Err(refuse("same-name", message, "read them in statements of their own"));
            }
            Some(_) => {}
            None => {
                let entry = (Arc::clone(relation), Use::default());
                self.named.relations.insert(relation.name.clone(), entry);
            }
        }
        Ok(Some(relation.name.clone()))
    }

    fn factor(&mut self, factor: &TableFactor) -> Result<(), Refusal> {
        let TableFactor::Table { name, alias, args, .. } = factor else { return Ok(()) };
        if args.is_some() {
            return Ok(());
        }
        let Some(relation) = self.relation(name)? else { return Ok(()) };
        let shown = alias.as_ref().map_or(&*relation, |alias| alias.name.value.as_str());
        self.aliases.entry(shown.into()).or_default().insert(relation.clone());
        let is_renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
        if is_renamed && let Some((_, use_)) = self.named.relations.get_mut(&relation) {
            use_.takes_all = true;
        }
        Ok(())
    }
}

impl Visitor for Reader<'_> {
    type Break = Box<Refusal>;

    fn pre_visit_query(&mut self, query: &sqlparser::ast::Query) -> Flow {
        match set_leaf(&query.body) {
            Ok(()) => ControlFlow::Continue(()),
            Err(refusal) => ControlFlow::Break(Box::new(refusal)),
        }
    }

    fn pre_visit_select(&mut self, select: &sqlparser::ast::Select) -> Flow {
        self.named.takes_all |= select
            .projection
            .iter()
            .any(|item| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..)));
        let natural = select.from.iter().flat_map(|item| &item.joins).any(|join| {
            super::block::side(join)
                .is_none_or(|(_, constraint)| matches!(constraint, sqlparser::ast::JoinConstraint::Natural))
        });
        self.named.takes_all |= natural;
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Flow {
        match self.factor(factor) {
            Ok(()) => ControlFlow::Continue(()),
            Err(refusal) => ControlFlow::Break(Box::new(refusal)),
        }
    }
}

/// `TABLE t` inside of a statement names a table that the walk does not see.
fn set_leaf(body: &SetExpr) -> Result<(), Refusal> {
    match body {
        SetExpr::Select(_) | SetExpr::Query(_) | SetExpr::Values(_) => Ok(()),
        SetExpr::SetOperation { left, right, .. } => {
            set_leaf(left)?;
            set_leaf(right)
        }
        _ => Err(refuse("query", "this form of query over several shards", "write SELECT * FROM the table")),
    }
}

/// Expressions that are nothing but a relation's name or alias: its rows as a whole.
struct WholeRows<'a> {
    aliases: &'a BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    found: BTreeSet<Box<str>>,
}

impl Visitor for WholeRows<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        let name = match expr {
            Expr::Identifier(name) => Some(name),
            Expr::CompoundIdentifier(names) => names.last(),
            _ => None,
        };
        if let Some(relations) = name.and_then(|name| self.aliases.get(&*name.value)) {
            self.found.extend(relations.iter().cloned());
        }
        ControlFlow::Continue(())
    }
}

/// Schemas of the relations by name.
fn shipments_by_name(named: &Named) -> BTreeMap<&str, &str> {
    named.relations.values().map(|(relation, _)| (&*relation.name, &*relation.schema)).collect()
}

/// The text with `pg_temp` for the schema of every shipped table, and whether nothing had to be replaced.
fn retargeted(source: &Source<'_>, schemas: &BTreeMap<&str, &str>) -> Result<(String, bool), Refusal> {
    let mut sql = String::with_capacity(source.text.len());
    let mut at = 0;
    for (schema, start, end) in source.qualified_names() {
        if schemas.get(&*schema.name) != Some(&&*schema.schema) {
            continue;
        }
        if schema.is_behind_dot {
            return Err(refuse("from", "a table's name with a database in it", "name schema and table"));
        }
        sql.push_str(source.slice(&(at..start)));
        sql.push_str("pg_temp");
        at = end;
    }
    sql.push_str(source.slice(&(at..source.end())));
    Ok((sql, at == 0))
}

/// A SELECT that says whether unqualified names mean the temporary tables.
fn probe(named: &Named) -> Box<str> {
    let each = named.relations.keys().map(|name| {
        let literal = quoted(name).replace('\'', "''").replace('\\', "\\\\");
        format!(
            "pg_catalog.to_regclass(E'{literal}')::pg_catalog.oid OPERATOR(pg_catalog.=) \
             pg_catalog.to_regclass(E'pg_temp.{literal}')::pg_catalog.oid"
        )
    });
    format!("SELECT {}", each.collect::<Vec<_>>().join(" AND ")).into()
}
