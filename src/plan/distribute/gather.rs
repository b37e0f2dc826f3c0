//! Statements that PostgreSQL itself merges: what is shipped to the coordinator, and which text runs there.
//!
//! The final statement is the client's own text, in which names mean temporary tables with the shipped rows: `pg_temp` comes
//! first where a name has no schema, and takes the schema's place where it has one.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{Expr, ObjectName, SelectItem, SetExpr, Statement, TableFactor, TableWithJoins, Visit, Visitor};

use super::analysis::table;
use super::functions::Functions;
use super::model::{Distributed, Gathered, Input, View};
use super::refuse::refuse;
use super::scope::parts;
use super::ship::{Columns, Shipping, quoted};
use super::source::Source;
use super::views::{self, Definition};
use super::{correlated, filters, key_lists};
use crate::catalog::model::{Relation, RelationKind};
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
    super::check_settings(source)?;
    let functions = Functions { catalog: input.catalog, pure_functions: input.pure_functions };
    super::gather_check::check(source, functions, coordinator)?;
    if input.parameters.is_none() && input.statement.parameters > 0 {
        return Ok(Distributed::NeedsBind);
    }
    let mut named = named(tree, input)?;
    if named.relations.is_empty() {
        return Err(why);
    }
    named.takes_all |= source.means_unnamed_columns();
    for seen in &named.views {
        named.takes_all |= Definition::of(&seen.view)?.source.means_unnamed_columns();
    }
    let texts = named.texts(tree, source)?;
    named.check_row_types(input)?;
    let row_types = named.row_types(&texts);
    for text in texts.iter().skip(1) {
        views::check(input, &text.source, functions, coordinator)?;
    }
    let shipping = Shipping { catalog: input.catalog, coordinator, same_encoding: input.session.same_encoding };
    shipping.check_default_collation()?;
    let indexes = correlated::indexes(tree, |name| named.relations.get(name).map(|(relation, _)| relation));
    let mut filters = BTreeMap::new();
    for text in &texts {
        let standard_conforming_strings = text.number > 0 || input.session.standard_conforming_strings;
        let relation = |name: &str| named.of_text(text.number, name);
        let reader = filters::Reader { source: &text.source, functions, standard_conforming_strings, relation };
        filters.append(&mut filters::filters(&text.tree, reader));
    }
    let bonds = key_lists::bonds(tree, input.catalog, key_lists::Equals::new(input, coordinator), |name: &str| {
        named.of_text(0, name)
    });
    let tables: Vec<Box<str>> = named.relations.keys().cloned().collect();
    let identifiers: BTreeSet<String> = texts.iter().flat_map(|text| text.source.identifiers()).collect();
    let has_group_by = texts.iter().any(|text| text.source.has_group_by());
    let takes_all =
        |table: &str, use_: &Use| named.takes_all || use_.takes_all || row_types.iter().any(|name| **name == *table);
    let is_shipped = |table: &str, column: &str| {
        let takes_all = named.relations.get(table).is_some_and(|(_, use_)| takes_all(table, use_));
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
        let columns = if takes_all(&relation.name, use_) { Columns::All } else { Columns::Named(identifiers.clone()) };
        let (indexes, filter) = (indexes.get(&relation.name), filters.get(&relation.name));
        let mut shipment = shipping.shipment(relation, &columns, from, has_group_by, indexes, filter)?;
        shipment.is_of_views = !use_.texts.contains(&0);
        if let Some(bonds) = bonds.get(&relation.name) {
            shipment.key_lists = key_lists::key_lists(bonds, &tables, &relation.name, is_shipped);
        }
        shipments.push(shipment);
    }
    let shards = if is_sharded { all } else { vec![0] };
    let (sql, is_verbatim) = retargeted(source, &shipments_by_name(&named))?;
    Ok(Distributed::Gathered(Arc::new(Gathered {
        shards,
        probe: probe(named.relations.keys().map(|name| &**name)),
        views: named.made(&texts)?,
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
    /// Which texts name it: 0 is the statement's, the others are those of views.
    texts: BTreeSet<usize>,
    /// How often it is read from by name.
    count: usize,
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
    /// Views, those that others read first.
    views: Vec<Seen>,
    /// How many texts of views were begun.
    begun: usize,
}

/// A view.
#[derive(Debug)]
struct Seen {
    view: Arc<Relation>,
    /// Whether the statement itself names it.
    is_named: bool,
    /// The number of its text.
    text: usize,
}

impl Named {
    /// The relation of that name, if nothing but that text names it. What a CTE shadows is not looked into.
    fn of_text(&self, at: usize, name: &str) -> Option<&Arc<Relation>> {
        let (relation, use_) = self.relations.get(name).filter(|_| !self.ctes.contains(name))?;
        (use_.texts.len() == 1 && use_.texts.contains(&at)).then_some(relation)
    }

    /// Whether another relation has the name of that one.
    fn has_other(&self, relation: &Relation) -> bool {
        let tables = self.relations.values().map(|(relation, _)| relation);
        let mut known = tables.chain(self.views.iter().map(|seen| &seen.view));
        known.any(|known| known.name == relation.name && known.oid != relation.oid)
    }

    /// Relations whose names may also stand for the types of their rows (`null::orders`): what is shipped is such a type, too.
    fn row_types(&self, texts: &[Text<'_>]) -> BTreeSet<Box<str>> {
        let named = |name: &str| texts.iter().map(|text| text.source.count_of(name)).sum::<usize>();
        let relations = self.relations.iter().filter(|(name, (_, use_))| named(name) > use_.count);
        relations.map(|(name, _)| name.clone()).collect()
    }

    /// Refuses the type of a relation's rows where the relation is not shipped: the coordinator has none, or another.
    fn check_row_types(&self, input: &Input<'_>) -> Result<(), Refusal> {
        let is_unknown = |cast: &&crate::sql::facts::Name| {
            let found = match &cast.schema {
                Some(schema) => input.catalog.relation(schema, &cast.name),
                None => input.catalog.resolve(input.search_path, &cast.name),
            };
            let is_here = |relation: &Arc<Relation>| {
                self.relations.contains_key(&relation.name)
                    || self.views.iter().any(|seen| seen.view.oid == relation.oid)
                    || matches!(relation.kind, RelationKind::Sequence | RelationKind::Other)
            };
            found.is_some_and(|relation| !is_here(relation))
        };
        match input.statement.casts.iter().find(is_unknown) {
            Some(cast) => Err(refuse(
                "cast",
                format!("the type of a row of \"{}\", which the statement does not read", cast.name),
                "leave it out, or tie the statement to one shard key",
            )),
            None => Ok(()),
        }
    }

    /// The statement, and the views' queries.
    fn texts<'a>(&'a self, tree: &'a Statement, source: &'a Source<'a>) -> Result<Vec<Text<'a>>, Refusal> {
        let mut texts = vec![Text { number: 0, tree: Cow::Borrowed(tree), source: Cow::Borrowed(source) }];
        for seen in &self.views {
            let Definition { tree, source, .. } = Definition::of(&seen.view)?;
            texts.push(Text { number: seen.text, tree: Cow::Owned(tree), source: Cow::Owned(source) });
        }
        Ok(texts)
    }

    /// The views as they are made of what is shipped.
    fn made(&self, texts: &[Text<'_>]) -> Result<Vec<View>, Refusal> {
        let schemas = shipments_by_name(self);
        let made = |(Seen { view, is_named, .. }, text): (&Seen, &Text<'_>)| {
            let (name, query) = (quoted(&view.name), retargeted(&text.source, &schemas)?.0);
            let full = format!("{}.{name}", quoted(&view.schema));
            Ok(View {
                view: format!("{}.{}", view.schema, view.name).into(),
                create: format!("CREATE TEMPORARY VIEW {name} AS {query}").into(),
                probe: probe([&*view.name]),
                name: name.into(),
                allowed: is_named.then(|| format!("SELECT * FROM {full} LIMIT 0").into()),
            })
        };
        self.views.iter().zip(texts.iter().skip(1)).map(made).collect()
    }
}

/// A text, and what was read in it.
struct Text<'a> {
    number: usize,
    tree: Cow<'a, Statement>,
    source: Cow<'a, Source<'a>>,
}

fn named(tree: &Statement, input: &Input<'_>) -> Result<Named, Refusal> {
    let mut named = Named::default();
    read(tree, input, &mut named, 0)?;
    Ok(named)
}

/// Takes in the relations that a text names.
fn read(tree: &Statement, input: &Input<'_>, named: &mut Named, text: usize) -> Result<(), Refusal> {
    // CTEs first: which of the names they shadow is PostgreSQL's to say.
    let ctes = ctes(tree);
    let mut reader = Reader { input, named, aliases: BTreeMap::new(), joins: Vec::new(), ctes, unknown: None, text };
    if let ControlFlow::Break(refusal) = tree.visit(&mut reader) {
        return Err(*refusal);
    }
    if let Some(name) = reader.unknown {
        return Err(unknown(&name));
    }
    let Reader { named, mut aliases, joins, ctes, .. } = reader;
    for (name, joined) in joins {
        let relations: Vec<_> = joined.iter().filter_map(|it| aliases.get(it)).flatten().cloned().collect();
        aliases.entry(name).or_default().extend(relations);
    }
    named.ctes.extend(ctes);
    let mut rows = WholeRows { aliases: &aliases, found: BTreeSet::new() };
    let _ = tree.visit(&mut rows);
    for name in rows.found {
        if let Some((_, use_)) = named.relations.get_mut(&name) {
            use_.takes_all = true;
        }
    }
    Ok(())
}

fn same_name(relation: &Relation) -> Refusal {
    let message = format!("two relations \"{}\" of different schemas", relation.name);
    refuse("same-name", message, "read them in statements of their own")
}

fn unknown(name: &str) -> Refusal {
    refuse(
        "unsharded-table",
        format!("\"{name}\" does not live on the shards and cannot be joined with tables that do"),
        "make it a reference table, or read it in a statement of its own",
    )
}

pub(super) fn ctes(tree: &impl Visit) -> BTreeSet<Box<str>> {
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
    named: &'a mut Named,
    /// Relations' names by what columns are qualified with.
    aliases: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
    /// Names of joins in parentheses, and what is joined there, by its own names.
    joins: Vec<(Box<str>, BTreeSet<Box<str>>)>,
    ctes: BTreeSet<Box<str>>,
    unknown: Option<String>,
    /// Which of the texts it reads.
    text: usize,
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
            if views::is_over_tables(relation, catalog, self.input.database) {
                let view = Arc::clone(relation);
                self.view(view)?;
                return Ok(None);
            }
            self.unknown.get_or_insert_with(|| table.to_owned());
            return Ok(None);
        }
        if self.named.has_other(relation) {
            return Err(same_name(relation));
        }
        let entry = || (Arc::clone(relation), Use::default());
        let (_, use_) = self.named.relations.entry(relation.name.clone()).or_insert_with(entry);
        use_.texts.insert(self.text);
        use_.count += 1;
        Ok(Some(relation.name.clone()))
    }

    /// Takes in a view, after what it reads.
    fn view(&mut self, view: Arc<Relation>) -> Result<(), Refusal> {
        let is_named = self.text == 0;
        if let Some(seen) = self.named.views.iter_mut().find(|seen| seen.view.oid == view.oid) {
            seen.is_named |= is_named;
            return Ok(());
        }
        if view.row_security {
            let message = format!("\"{}\" is a view over a table with row-level security", view.name);
            return Err(refuse("view", message, "name the tables that it is made of"));
        }
        self.named.begun += 1;
        let text = self.named.begun;
        let definition = Definition::of(&view)?;
        read(&definition.tree, &views::as_written(self.input, definition.text), self.named, text)?;
        if self.named.has_other(&view) {
            return Err(same_name(&view));
        }
        self.named.views.push(Seen { view: Arc::clone(&view), is_named, text });
        Ok(())
    }

    fn factor(&mut self, factor: &TableFactor) -> Result<(), Refusal> {
        if let TableFactor::NestedJoin { table_with_joins, alias: Some(alias) } = factor {
            let mut joined = BTreeSet::new();
            shown_names(table_with_joins, &mut joined);
            self.named.takes_all |= !alias.columns.is_empty();
            self.joins.push((alias.name.value.as_str().into(), joined));
        }
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

/// What the tables of a join are called in it.
fn shown_names(join: &TableWithJoins, found: &mut BTreeSet<Box<str>>) {
    for factor in std::iter::once(&join.relation).chain(join.joins.iter().map(|join| &join.relation)) {
        match factor {
            TableFactor::Table { alias: Some(alias), .. } => _ = found.insert(alias.name.value.as_str().into()),
            TableFactor::Table { name, alias: None, .. } => {
                found.extend(parts(name).map(|(_, table)| Box::from(table)));
            }
            TableFactor::NestedJoin { table_with_joins, .. } => shown_names(table_with_joins, found),
            _ => {}
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

/// Schemas of the relations and views by name.
fn shipments_by_name(named: &Named) -> BTreeMap<&str, &str> {
    let views = named.views.iter().map(|seen| &seen.view);
    let relations = named.relations.values().map(|(relation, _)| relation).chain(views);
    relations.map(|relation| (&*relation.name, &*relation.schema)).collect()
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

/// A SELECT that says whether unqualified names mean what is temporary.
fn probe<'a>(names: impl IntoIterator<Item = &'a str>) -> Box<str> {
    let each = names.into_iter().map(|name| {
        let literal = quoted(name).replace('\'', "''").replace('\\', "\\\\");
        format!(
            "pg_catalog.to_regclass(E'{literal}')::pg_catalog.oid OPERATOR(pg_catalog.=) \
             pg_catalog.to_regclass(E'pg_temp.{literal}')::pg_catalog.oid"
        )
    });
    format!("SELECT {}", each.collect::<Vec<_>>().join(" AND ")).into()
}
