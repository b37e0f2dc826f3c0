//! Reads one database's catalog in one snapshot.

use std::collections::HashMap;
use std::sync::Arc;

use tokio_postgres::{Client, Row};

use super::closure::{self, Edges};
use super::model::{
    Assigns, Catalog, Collation, Column, DefaultKind, ForeignKey, Function, FunctionKind, Oid, Persistence, Relation,
    RelationKind, RowRules, RowTrigger, Type, Volatility,
};
use super::{policies, queries};
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// The catalog of the database that `client` is connected to, with version 0.
///
/// Runs its queries at once, in a READ ONLY transaction of its own: the client must be idle. If the future is dropped in the middle the
/// client is left in that transaction.
pub async fn load(client: &Client) -> Result<Catalog, Error> {
    // What a default or a constraint says is not told while somebody changes its table: it is asked for again.
    let begin = "begin isolation level repeatable read read only; set local lock_timeout = '2s'";
    client.batch_execute(begin).await.map_err(failed)?;
    let answers = Answers::read(client).await;
    client.batch_execute("rollback").await.map_err(failed)?;
    build(&answers.map_err(failed)?).map_err(failed)
}

/// Takes in what the views stand for. Returns whether that could be read: where a view's table is locked it is not waited for.
///
/// # Errors
/// The server failed.
pub async fn read_views(client: &Client, catalog: &mut Catalog) -> Result<bool, Error> {
    // Names that no search path would find otherwise are written out.
    let begin = "begin read only; set local search_path = pg_catalog; set local lock_timeout = '200ms'";
    client.batch_execute(begin).await.map_err(failed)?;
    let answer = client.query(queries::VIEWS, &[]).await;
    client.batch_execute("rollback").await.map_err(failed)?;
    let Ok(rows) = answer else { return Ok(false) };
    for row in rows {
        let oid: Oid = row.try_get(0).map_err(failed)?;
        let definition: Option<&str> = row.try_get(1).map_err(failed)?;
        if let (Some(relation), Some(text)) = (catalog.relations.get_mut(&oid), definition) {
            let text = text.trim_end().trim_end_matches(';');
            Arc::make_mut(relation).definition = Some(text.into());
            catalog.has_views = true;
        }
    }
    Ok(true)
}

pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    let message = "cannot read the catalog of the server";
    Error::new(ErrorKind::Backend, SqlState::CONNECTION_FAILURE, message).cause(error)
}

struct Answers {
    database: Row,
    relations: Vec<Row>,
    columns: Vec<Row>,
    constraints: Vec<Row>,
    inherits: Vec<Row>,
    rules: Vec<Row>,
    opaque_writes: Vec<Row>,
    row_triggers: Vec<Row>,
    functions: Vec<Row>,
    types: Vec<Row>,
    collations: Vec<Row>,
    operators: Vec<Row>,
    casts: Row,
    policies: Vec<Row>,
    privileges: Row,
    schemas: Vec<Row>,
}

impl Answers {
    async fn read(client: &Client) -> Result<Self, tokio_postgres::Error> {
        let ask = |query| client.query(query, &[]);
        // Two halves, so that no one future is large.
        let first = Box::pin(async move {
            tokio::try_join!(
                client.query_one(queries::DATABASE, &[]),
                ask(queries::RELATIONS),
                ask(queries::COLUMNS),
                ask(queries::CONSTRAINTS),
                ask(queries::INHERITS),
                ask(queries::RULES),
                ask(queries::OPAQUE_WRITES),
                ask(queries::ROW_TRIGGERS),
            )
        });
        let second = Box::pin(async move {
            tokio::try_join!(
                ask(queries::FUNCTIONS),
                ask(queries::TYPES),
                ask(queries::COLLATIONS),
                ask(queries::OPERATORS),
                client.query_one(queries::CASTS, &[]),
                ask(queries::POLICIES),
                client.query_one(queries::PRIVILEGES, &[]),
                ask(queries::SCHEMAS),
            )
        });
        let (first, second) = tokio::try_join!(first, second)?;
        let (database, relations, columns, constraints, inherits, rules, opaque_writes, row_triggers) = first;
        let (functions, types, collations, operators, casts, policies, privileges, schemas) = second;
        Ok(Self {
            database,
            relations,
            columns,
            constraints,
            inherits,
            rules,
            opaque_writes,
            row_triggers,
            functions,
            types,
            collations,
            operators,
            casts,
            policies,
            privileges,
            schemas,
        })
    }
}

fn build(answers: &Answers) -> Result<Catalog, tokio_postgres::Error> {
    let database = &answers.database;
    let default_collation = Collation {
        schema: "pg_catalog".into(),
        name: "default".into(),
        provider: text(database, 2)?.chars().next().unwrap_or('c'),
        locale: text(database, 3)?,
        deterministic: true,
    };
    let functions = functions(&answers.functions)?;
    let named = functions.iter().flat_map(|(name, overloads)| overloads.iter().map(move |one| (one.oid, name.clone())));
    let function_names = named.collect();
    let relations = relations(answers)?;
    let relation_by_name =
        relations.values().map(|relation| ((relation.schema.clone(), relation.name.clone()), relation.oid)).collect();
    let mut collations = collations(&answers.collations)?;
    collations.insert(100, default_collation.clone());
    let mut user_operators: HashMap<Box<str>, Vec<Volatility>> = HashMap::new();
    for row in &answers.operators {
        user_operators.entry(text(row, 0)?).or_default().push(volatility(letter(row, 1)?));
    }
    Ok(Catalog {
        version: 0,
        relations: relations.into_iter().map(|(oid, relation)| (oid, Arc::new(relation))).collect(),
        relation_by_name,
        functions,
        function_names,
        types: types(&answers.types)?,
        collations,
        user_operators,
        has_views: false,
        has_user_casts: answers.casts.try_get(0)?,
        has_impure_user_casts: answers.casts.try_get(1)?,
        privileges: text(&answers.privileges, 0)?,
        schemas: answers.schemas.iter().map(|row| text(row, 0)).collect::<Result<_, _>>()?,
        default_collation: Some(default_collation),
        default_isolation: text(database, 1)?,
        server_version: u32::try_from(database.try_get::<_, i32>(0)?).unwrap_or_default(),
    })
}

fn text(row: &Row, column: usize) -> Result<Box<str>, tokio_postgres::Error> {
    row.try_get::<_, &str>(column).map(Into::into)
}

/// A column of PostgreSQL's type `"char"`.
fn letter(row: &Row, column: usize) -> Result<char, tokio_postgres::Error> {
    row.try_get::<_, i8>(column).map(|byte| char::from(byte.cast_unsigned()))
}

fn relations(answers: &Answers) -> Result<HashMap<Oid, Relation>, tokio_postgres::Error> {
    let mut relations = HashMap::with_capacity(answers.relations.len());
    for row in &answers.relations {
        let relation = relation(row)?;
        relations.insert(relation.oid, relation);
    }
    let mut numbers: HashMap<(Oid, i16), Box<str>> = HashMap::new();
    for row in &answers.columns {
        let oid = row.try_get(0)?;
        let column = column(row)?;
        numbers.insert((oid, row.try_get(1)?), column.name.clone());
        if let Some(relation) = relations.get_mut(&oid) {
            relation.columns.push(column);
        }
    }
    let mut edges = Edges::default();
    for row in &answers.constraints {
        let referencing: Oid = row.try_get(1)?;
        if row.try_get(5)? {
            edges.cascades.entry(row.try_get(3)?).or_default().push(referencing);
        }
        constraint(row, &mut relations, &numbers)?;
    }
    for row in &answers.inherits {
        let (child, parent) = (row.try_get(0)?, row.try_get(1)?);
        edges.children.entry(parent).or_default().push(child);
        edges.parents.entry(child).or_default().push(parent);
    }
    for row in &answers.rules {
        edges.rule(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?);
    }
    for row in &answers.policies {
        let named: Vec<String> = row.try_get(3)?;
        let settings: Option<Vec<_>> = named.iter().map(|bytes| policies::text_constant(bytes)).collect();
        let opaque = row.try_get::<_, bool>(4)? || settings.is_none();
        let rules = RowRules { functions: row.try_get(2)?, settings: settings.unwrap_or_default(), opaque };
        edges.policies.entry(row.try_get(0)?).or_default().push((row.try_get(1)?, rules));
    }
    for row in &answers.opaque_writes {
        edges.opaque.insert(row.try_get(0)?);
    }
    for row in &answers.row_triggers {
        if let (Some(relation), Some(trigger)) = (relations.get_mut(&row.try_get(0)?), row_trigger(row)?) {
            relation.row_triggers.push(trigger);
        }
    }
    closure::close(&mut relations, &edges);
    Ok(relations)
}

/// Takes in one row of `pg_constraint`.
fn constraint(
    row: &Row,
    relations: &mut HashMap<Oid, Relation>,
    numbers: &HashMap<(Oid, i16), Box<str>>,
) -> Result<(), tokio_postgres::Error> {
    let named = |oid: Oid, key: Option<Vec<i16>>| -> Vec<Box<str>> {
        key.unwrap_or_default().iter().filter_map(|&at| numbers.get(&(oid, at)).cloned()).collect()
    };
    let oid: Oid = row.try_get(1)?;
    let kind = letter(row, 0)?;
    let columns = named(oid, row.try_get(2)?);
    if kind == 'f' {
        let table: Oid = row.try_get(3)?;
        let referenced = named(table, row.try_get(4)?);
        if let Some(target) = relations.get_mut(&table) {
            target.is_referenced = true;
        }
        if let Some(relation) = relations.get_mut(&oid) {
            relation.foreign_keys.push(ForeignKey { columns, table, referenced, is_valid: row.try_get(7)? });
        }
        return Ok(());
    }
    if let Some(relation) = relations.get_mut(&oid) {
        relation.is_judged_late |= row.try_get::<_, bool>(6)?;
        if kind == 'p' {
            relation.primary_key = columns;
        }
    }
    Ok(())
}

fn relation(row: &Row) -> Result<Relation, tokio_postgres::Error> {
    let options = text(row, 6)?;
    // The option stands there as it was typed.
    let is_false = |value: &str| {
        let value = value.to_ascii_lowercase();
        matches!(&*value, "0" | "of" | "off")
            || ["false", "no"].iter().any(|word| !value.is_empty() && word.starts_with(&*value))
    };
    let invoker =
        options.split(',').any(|option| option.strip_prefix("security_invoker=").is_some_and(|value| !is_false(value)));
    Ok(Relation {
        oid: row.try_get(0)?,
        schema: text(row, 1)?,
        name: text(row, 2)?,
        kind: match letter(row, 3)? {
            'r' => RelationKind::Table,
            'p' => RelationKind::PartitionedTable,
            'v' => RelationKind::View,
            'm' => RelationKind::MaterializedView,
            'f' => RelationKind::ForeignTable,
            'S' => RelationKind::Sequence,
            _ => RelationKind::Other,
        },
        table: row.try_get(7)?,
        persistence: match letter(row, 4)? {
            'p' => Persistence::Permanent,
            'u' => Persistence::Unlogged,
            _ => Persistence::Temporary,
        },
        row_security: row.try_get(5)?,
        row_rules: RowRules::default(),
        security_invoker: invoker,
        columns: Vec::new(),
        primary_key: Vec::new(),
        reads: Vec::new(),
        view_functions: Vec::new(),
        definition: None,
        writes: Vec::new(),
        writes_opaque: false,
        row_triggers: Vec::new(),
        foreign_keys: Vec::new(),
        is_referenced: false,
        is_judged_late: false,
    })
}

/// The trigger, if its function assigns anything.
fn row_trigger(row: &Row) -> Result<Option<RowTrigger>, tokio_postgres::Error> {
    let columns: Vec<&str> = row.try_get(6)?;
    let assigns = match (row.try_get(5)?, &*columns) {
        (true, _) => Assigns::Anything,
        (false, []) => return Ok(None),
        (false, columns) => Assigns::Columns(columns.iter().map(|&name| name.into()).collect()),
    };
    let (schema, function) = (text(row, 1)?, text(row, 2)?);
    Ok(Some(RowTrigger { schema, function, on_insert: row.try_get(3)?, on_update: row.try_get(4)?, assigns }))
}

fn default_kind(letter: char) -> DefaultKind {
    match letter {
        'n' => DefaultKind::None,
        'i' => DefaultKind::Constant,
        'v' => DefaultKind::PerRow,
        _ => DefaultKind::Moment,
    }
}

fn column(row: &Row) -> Result<Column, tokio_postgres::Error> {
    let default = default_kind(letter(row, 8)?);
    let expression: Option<&str> = row.try_get(9)?;
    let moment = match expression.filter(|_| default == DefaultKind::Moment) {
        Some(expression) => Some((expression.into(), text(row, 10)?)),
        None => None,
    };
    Ok(Column {
        name: text(row, 2)?,
        type_oid: row.try_get(3)?,
        typmod: row.try_get(4)?,
        collation: row.try_get(5)?,
        not_null: row.try_get(6)?,
        has_default: row.try_get(7)?,
        is_generated: row.try_get(11)?,
        default,
        moment,
    })
}

fn volatility(letter: char) -> Volatility {
    match letter {
        'i' => Volatility::Immutable,
        's' => Volatility::Stable,
        _ => Volatility::Volatile,
    }
}

fn functions(rows: &[Row]) -> Result<HashMap<Box<str>, Vec<Function>>, tokio_postgres::Error> {
    let mut functions: HashMap<Box<str>, Vec<Function>> = HashMap::with_capacity(rows.len());
    for row in rows {
        functions.entry(text(row, 2)?).or_default().push(Function {
            oid: row.try_get(0)?,
            schema: text(row, 1)?,
            kind: match letter(row, 3)? {
                'a' => FunctionKind::Aggregate,
                'w' => FunctionKind::Window,
                'p' => FunctionKind::Procedure,
                _ => FunctionKind::Function,
            },
            volatility: volatility(letter(row, 4)?),
            security_definer: row.try_get(5)?,
            user_defined: row.try_get(8)?,
            of_contrib: row.try_get(9)?,
            arguments: row.try_get(6)?,
            result: row.try_get(7)?,
        });
    }
    // Rows come in no order: without one, two snapshots of the same catalog would differ.
    functions.values_mut().for_each(|overloads| overloads.sort_unstable_by_key(|function| function.oid));
    Ok(functions)
}

fn types(rows: &[Row]) -> Result<HashMap<Oid, Type>, tokio_postgres::Error> {
    let one = |row: &Row| {
        let found = Type {
            schema: text(row, 1)?,
            name: text(row, 2)?,
            kind: letter(row, 3)?,
            base: row.try_get(4)?,
            element: row.try_get(5)?,
            collation: row.try_get(6)?,
            labels: text(row, 7)?,
            default: default_kind(letter(row, 8)?),
        };
        Ok((row.try_get(0)?, found))
    };
    rows.iter().map(one).collect()
}

fn collations(rows: &[Row]) -> Result<HashMap<Oid, Collation>, tokio_postgres::Error> {
    let one = |row: &Row| {
        let found = Collation {
            name: text(row, 1)?,
            provider: letter(row, 2)?,
            locale: text(row, 3)?,
            deterministic: row.try_get(4)?,
            schema: text(row, 5)?,
        };
        Ok((row.try_get(0)?, found))
    };
    rows.iter().map(one).collect()
}
