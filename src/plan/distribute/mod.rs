//! How a statement over sharded tables is split: one shard, streamed over several, or refused.

mod analysis;
mod array;
mod block;
mod carrier;
mod check;
mod constant;
mod copy;
mod correlated;
mod ddl;
mod defaults;
mod filters;
mod foreign_key;
mod functions;
mod gather;
mod gather_check;
mod group;
mod having;
mod insert_select;
mod items;
mod key_lists;
mod key_move;
mod label;
mod membership;
mod merge_into;
mod model;
mod named;
mod once;
mod ordered;
mod part;
mod placed;
mod refuse;
mod scatter;
mod scope;
mod select_into;
mod ship;
mod source;
mod split;
mod steady;
mod stream;
mod tie;
mod triggers;
mod views;
mod write;

pub use carrier::{Carried, Carrier};
pub use copy::{CopiedIn, Form, Placed, copy_in};
pub use ddl::{created_view, ddl, drops_views};
pub use insert_select::{Answered, InsertSelect, create_on_primary, insert_into_primary};
pub use key_move::KeyMove;
pub use model::{
    Aggregate, BitOperation, Collating, Condition, Distributed, Gathered, Groups, Input, Key, KeyList, Merge, Output,
    Parameters, Session, Shipment, Sort, SortBy, SplitTable, Streamed, Unstreamed, View,
};
pub use scatter::{Part, Scattered, Tally, marker};
pub use split::{Leaf, Named, Split, split};
pub use views::is_over_tables;

use sqlparser::ast::{Query, SetExpr, Statement};

use self::analysis::{Analysis, Block, Tie};
use self::check::{check, check_write};
use self::constant::Constants;
use self::functions::Functions;
use self::refuse::{clause, refuse};
use self::scatter::Written;
use self::source::Source;
use crate::plan::{Reason, Refusal};
use crate::sql::facts::Class;
use crate::sql::parse;

/// Decides where one statement of a database with shards runs.
///
/// Reference tables alone are read on shard 0; whoever calls may take any other.
///
/// # Errors
/// A statement over sharded or reference tables that cannot be answered exactly.
pub fn plan(input: &Input<'_>) -> Result<Distributed, Refusal> {
    let scs = input.session.standard_conforming_strings;
    let Some(tree) = parse::parse(input.text.as_bytes(), scs).filter(|_| input.statement.class != Class::Opaque) else {
        return opaque(input);
    };
    let source = Source::new(input.text, scs);
    if matches!(tree, Statement::Query(_))
        && let Some(planned) = views::plan(input, &tree, &source)
    {
        return planned;
    }
    let constants = Constants { input, source: &source };
    let mut analysis = Analysis::new(constants);
    match planned(input, &tree, &source, &mut analysis) {
        // What the shards' answers cannot be merged from is asked of PostgreSQL, which is given the rows.
        Err(why) if matches!(tree, Statement::Query(_)) && why.code != LONG_NAME && input.split.is_none() => {
            gather::plan(input, &tree, &source, why)
        }
        planned => planned,
    }
}

/// The code of the refusal of a name that means another one than it says.
const LONG_NAME: &str = "long-name";

fn planned(
    input: &Input<'_>,
    tree: &Statement,
    source: &Source<'_>,
    analysis: &mut Analysis<'_>,
) -> Result<Distributed, Refusal> {
    let shape = match tree {
        Statement::Explain { statement, .. } => match walk(analysis, statement) {
            Ok(Shape::Write(Written::Reference(relation))) => return Err(write::explained(&relation.name)),
            Ok(Shape::Write(Written::Sharded(written))) if written.moves.is_some() => return Err(key_move::explained()),
            walked => walked.map(|_| Shape::Explain),
        },
        tree => walk(analysis, tree),
    };
    let shape = match shape {
        Ok(shape) => shape,
        // A driver that describes an INSERT first has not said yet which rows it brings.
        Err(refusal) if refusal.code == "insert-key" && awaits_bind(input) => return Ok(Distributed::NeedsBind),
        Err(refusal) if analysis.touches => return Err(refusal),
        // A form that the walk does not know may still name a distributed table.
        Err(refusal) => {
            return opaque(input).map_err(|named| if refusal.code == "statement" { named } else { refusal });
        }
    };
    if !analysis.touches {
        return Ok(Distributed::Elsewhere);
    }
    check_names(input, source)?;
    let functions = Functions { catalog: input.catalog, pure_functions: input.pure_functions };
    let findings = match shape {
        Shape::Write(_) => check_write(tree, functions)?,
        _ => check(tree, functions)?,
    };
    if let Some(foreign) = &analysis.foreign {
        let message = format!("\"{foreign}\" does not live on the shards and cannot be joined with tables that do");
        return Err(refuse(
            "unsharded-table",
            message,
            "make it a reference table, or read it in a statement of its own",
        ));
    }
    if !input.statement.effects.is_empty() {
        return Err(clause("session", "a statement that changes the session's state"));
    }
    if awaits_bind(input) {
        return Ok(Distributed::NeedsBind);
    }
    match (analysis.tie, shape) {
        (Tie::One(_) | Tie::Many, Shape::Write(Written::Sharded(written))) if written.moves.is_some() => {
            no_moment(input)?;
            key_move::plan(&scatter::Write { input, tree, source, analysis, functions, findings }, written)
        }
        (_, Shape::Write(Written::Reference(relation))) => {
            no_moment(input)?;
            let write = scatter::Write { input, tree, source, analysis, functions, findings };
            write.reference(&relation)
        }
        (Tie::One(shard), _) => {
            Ok(Distributed::Shard { shard, reason: reason("shard-key", "every sharded table is tied to one shard") })
        }
        (Tie::Free, Shape::Query(_)) if !analysis.touches_sharded => Ok(Distributed::Shard {
            shard: 0,
            reason: reason("reference", "only reference tables are read: any shard has them"),
        }),
        (Tie::Free, Shape::Explain) if !analysis.touches_sharded => Ok(Distributed::Shard {
            shard: 0,
            reason: reason("reference", "only reference tables are read: any shard has them"),
        }),
        (Tie::Free, _) => Ok(Distributed::Shard {
            shard: 0,
            reason: reason("no-rows", "the shard keys' values contradict each other: no row can match"),
        }),
        (Tie::Many, Shape::Write(Written::Sharded(written))) => {
            no_moment(input)?;
            let write = scatter::Write { input, tree, source, analysis, functions, findings };
            write.sharded(written)
        }
        (Tie::Many, Shape::Write(Written::Elsewhere)) => Err(clause("multi-shard-write", "this write")),
        (Tie::Many, Shape::Explain) => Err(clause("explain", "EXPLAIN")),
        (Tie::Many, Shape::Query(parts)) => {
            let (query, block) = *parts;
            if let Some(why) = input.unstreamed {
                return Err(unstreamed(why));
            }
            check_settings(source)?;
            streamed(input, query, block.as_ref(), analysis, findings.one_shard, source, functions)
        }
    }
}

/// Refuses names that mean another thing than they say, or another on each server.
fn check_names(input: &Input<'_>, source: &Source<'_>) -> Result<(), Refusal> {
    if source.has_long_name() {
        let message = "a name of more than 63 bytes, which PostgreSQL cuts off, is not supported on sharded data";
        return Err(refuse(LONG_NAME, message, "write it as PostgreSQL's notice shows it"));
    }
    if source.asks_for_database() && !input.database.has_one_name() {
        let message = "the name of the database, which the shards have not in common, is not told on sharded data";
        return Err(refuse(
            "server-function",
            message,
            "ask for it in a statement that names no sharded or reference table",
        ));
    }
    Ok(())
}

/// Refuses to tell of a setting that statements over several shards have another value of: they are read in READ ONLY transactions.
fn check_settings(source: &Source<'_>) -> Result<(), Refusal> {
    const OWN: &str = "transaction_read_only";
    if source.names_setting(OWN) {
        let message = format!("{OWN} is not told by a statement over several shards");
        return Err(refuse("server-function", message, format!("use SHOW {OWN}")));
    }
    Ok(())
}

/// Whether there are parameters whose values are not known yet.
fn awaits_bind(input: &Input<'_>) -> bool {
    input.parameters.is_none() && input.statement.parameters > 0
}

/// What a statement is, with what is needed to split it.
enum Shape<'t> {
    Query(Box<(&'t Query, Option<Block<'t>>)>),
    Write(Written),
    Explain,
}

fn walk<'t>(analysis: &mut Analysis<'_>, tree: &'t Statement) -> Result<Shape<'t>, Refusal> {
    let shape = walk_statement(analysis, tree)?;
    if let Shape::Write(Written::Sharded(written)) = &shape {
        triggers::check(analysis.constants.input, tree, &written.relation)?;
    }
    Ok(shape)
}

fn walk_statement<'t>(analysis: &mut Analysis<'_>, tree: &'t Statement) -> Result<Shape<'t>, Refusal> {
    match tree {
        Statement::Query(query) => {
            let block = analysis.statement(query)?;
            Ok(Shape::Query(Box::new((query, block))))
        }
        Statement::Insert(insert) => write::insert(analysis, insert).map(Shape::Write),
        Statement::Update(update) => write::update(analysis, update).map(Shape::Write),
        Statement::Delete(delete) => write::delete(analysis, delete).map(Shape::Write),
        Statement::Merge(merge) => merge_into::merge(analysis, merge).map(Shape::Write),
        _ => Err(clause("statement", "this kind of statement")),
    }
}

fn streamed(
    input: &Input<'_>,
    query: &Query,
    block: Option<&Block<'_>>,
    analysis: &Analysis<'_>,
    one_shard: Option<Refusal>,
    source: &Source<'_>,
    functions: Functions<'_>,
) -> Result<Distributed, Refusal> {
    if let Some(refusal) = one_shard {
        return Err(refusal);
    }
    if query.with.is_some() {
        return Err(clause("cte", "WITH"));
    }
    if matches!(&*query.body, SetExpr::SetOperation { .. }) {
        return Err(clause("set-operation", "UNION, INTERSECT or EXCEPT"));
    }
    if analysis.is_loose {
        return Err(clause("sub-query", "a sub-query over other rows than those with the same shard key"));
    }
    if analysis.is_unsteady || analysis.is_entangled {
        return Err(clause("sub-query", "a query that can give others of its rows on each shard,"));
    }
    no_moment(input)?;
    let block = block.ok_or_else(|| clause("query", "this form of query"))?;
    stream::plan(query, block, source, analysis.constants, functions)
}

/// Why it is PostgreSQL's to merge.
fn unstreamed(why: Unstreamed) -> Refusal {
    match why {
        Unstreamed::Types | Unstreamed::Wrapped => {
            refuse("type", "rows of types that pgherd does not compare", "sort and group by plain types")
        }
        Unstreamed::Memory => refuse("memory", "groups that need more than fanout.memory", "raise fanout.memory"),
    }
}

/// Refuses a parameter that means another moment on each shard.
fn no_moment(input: &Input<'_>) -> Result<(), Refusal> {
    if names_a_moment(input) { Err(clause("stable-function", "a parameter such as 'now'")) } else { Ok(()) }
}

/// Whether a text parameter would be read relative to the clock, which each shard has its own of.
fn names_a_moment(input: &Input<'_>) -> bool {
    let Some(parameters) = input.parameters else { return false };
    (1..=parameters.values.len()).filter_map(|number| parameters.get(number)).any(|(_, is_binary, value)| {
        !is_binary && value.and_then(|value| std::str::from_utf8(value).ok()).is_some_and(check::names_a_moment)
    })
}

/// A statement that could not be read: refused if an identifier in it could reach a distributed table.
fn opaque(input: &Input<'_>) -> Result<Distributed, Refusal> {
    let statement = input.statement;
    let names = statement.reads.iter().chain(&statement.writes).map(|name| &name.name);
    let mut reached = names.chain(&statement.identifiers);
    match reached.find(|name| input.database.tables.iter().any(|table| *table.name == ***name)) {
        None => Ok(Distributed::Elsewhere),
        Some(name) => Err(refuse(
            if statement.class == Class::Opaque { "opaque" } else { "statement" },
            format!("this statement names \"{name}\", which lies on the shards, in a form that pgherd does not read"),
            "use SELECT, INSERT, UPDATE or DELETE, or run it on each shard yourself",
        )),
    }
}

fn reason(code: &'static str, text: &'static str) -> Reason {
    Reason { code, text: text.into() }
}
