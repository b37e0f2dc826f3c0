//! Statements over sharded tables that hold a query: COPY of its rows, a cursor over them, EXPLAIN of its plan.

use std::sync::Arc;

use super::distribute::{Distributed, Gathered};
use super::rules::Input;
use super::sharded::{in_transaction, planned, refusal};
use super::{Explained, Plan, Reason};
use crate::catalog::model::RelationKind;
use crate::sql::facts::{Class, Effect, Statement};
use crate::sql::{self, Wrapped, Wrapping};

/// Whether the statement holds a query that is planned for itself.
pub(super) fn holds_a_query(statement: &Statement) -> bool {
    statement.explain || statement.class == Class::CopyOut || is_cursor(statement)
}

/// Whether the statement declares a cursor.
pub(super) fn is_cursor(statement: &Statement) -> bool {
    let declares = |effect: &Effect| matches!(effect, Effect::Cursor | Effect::HoldCursor);
    statement.class == Class::Session && statement.effects.iter().any(declares)
}

/// Decides where such a statement runs.
pub(super) fn decide(input: &Input<'_>) -> Option<Plan> {
    let scs = input.session.standard_conforming_strings;
    let refused = |code, message: &str, hint| Some(Plan::Refuse(refusal(code, message.into(), hint)));
    let unread = "this statement over sharded tables is in a form that pgherd does not read";
    let Some(found) = sql::wrapped(input.text, scs) else {
        if let Some(plan) = copy_of_table(input, scs) {
            return Some(plan);
        }
        let hint = "Write COPY (SELECT ...) TO STDOUT, DECLARE ... CURSOR FOR SELECT or EXPLAIN SELECT.";
        return refused("statement", unread, hint);
    };
    let text = input.text.get(found.query.clone()).unwrap_or_default();
    let facts = sql::facts_of(text, scs);
    let Some(inner) = facts.single().filter(|inner| !holds_a_query(inner)) else {
        return refused("statement", unread, "Write it around one plain query.");
    };
    let only_gathered = !matches!(found.wrapping, Wrapping::Explain(_));
    match (planned(input, text, inner, only_gathered), &found.wrapping) {
        (Ok(Distributed::Elsewhere), _) => refused(
            "unknown-table",
            "the shards do not have this table of the configuration",
            "Create it on every shard.",
        ),
        (Ok(Distributed::NeedsBind), _) => Some(Plan::NeedsBind(Reason {
            code: "needs-bind",
            text: "which shards it concerns is known when its parameters are".into(),
        })),
        (Err(refusal), _) => Some(Plan::Refuse(refusal)),
        (Ok(Distributed::Scattered(_) | Distributed::InsertSelect(_) | Distributed::KeyMove(_)), _) => refused(
            "wrapped-write",
            "EXPLAIN or COPY of a write on several shards",
            "Use EXPLAIN (ROUTE) to see what pgherd would do, and send the write by itself.",
        ),
        (Ok(_), Wrapping::Cursor { hold: true }) => refused(
            "hold-cursor",
            "a cursor WITH HOLD over a sharded or reference table",
            "Declare it without HOLD in a transaction, or fetch all rows.",
        ),
        (Ok(Distributed::Shard { shard, reason }), _) => Some(Plan::Shard { shard, detachable: false, reason }),
        (Ok(_), Wrapping::Explain(asked)) if !asked.is_text => refused(
            "explain-format",
            "EXPLAIN over several shards in another form than text",
            "Leave FORMAT out, or EXPLAIN the parts on their shards.",
        ),
        (Ok(Distributed::Streamed(streamed)), Wrapping::Explain(asked)) => {
            Some(in_transaction(input, explain(asked, Plan::FanOut(streamed), text)))
        }
        (Ok(Distributed::Gathered(gathered)), Wrapping::Explain(asked)) => {
            Some(in_transaction(input, explain(asked, Plan::Gather(gathered), text)))
        }
        (Ok(Distributed::Gathered(gathered)), Wrapping::Copy) => {
            let copied = around(input, &found, &gathered, "copy", "PostgreSQL writes COPY's rows, on the coordinator");
            Some(in_transaction(input, Plan::Gather(Arc::new(copied))))
        }
        (Ok(Distributed::Gathered(gathered)), Wrapping::Cursor { .. }) => {
            let held = around(input, &found, &gathered, "cursor", "PostgreSQL keeps the cursor, on the coordinator");
            Some(in_transaction(input, Plan::Cursor(Arc::new(held))))
        }
        (Ok(Distributed::Streamed(_)), Wrapping::Copy | Wrapping::Cursor { .. }) => {
            refused("statement", "COPY and cursors over several shards without a coordinator", "Name one in the TOML.")
        }
    }
}

/// COPY of a table is COPY of a query for all that is in it.
fn copy_of_table(input: &Input<'_>, scs: bool) -> Option<Plan> {
    let copied = sql::copied_table(input.text, scs)?;
    let catalog = input.shards?;
    let relation = match &copied.name.schema {
        Some(schema) => catalog.relation(schema, &copied.name.name),
        None => catalog.resolve(input.session.search_path, &copied.name.name),
    }
    .filter(|relation| relation.kind == RelationKind::Table)?;
    let columns = match copied.columns {
        Some(written) => input.text.get(written)?.to_owned(),
        None => {
            let own = relation.columns.iter().filter(|column| !column.is_generated);
            own.map(|column| format!("\"{}\"", column.name.replace('"', "\"\""))).collect::<Vec<_>>().join(", ")
        }
    };
    let (table, rest) = (input.text.get(copied.written)?, input.text.get(copied.rest..)?);
    let text = format!("COPY (SELECT {columns} FROM {table}) {rest}");
    let facts = sql::facts_of(&text, scs);
    facts.single().filter(|statement| statement.class == Class::CopyOut)?;
    match decide(&Input { facts: &facts, text: &text, ..*input })? {
        // Places in this text mean nothing to the client.
        Plan::Gather(gathered) => {
            Some(Plan::Gather(Arc::new(Gathered { is_verbatim: false, ..Arc::unwrap_or_clone(gathered) })))
        }
        plan => Some(plan),
    }
}

fn explain(asked: &sql::Explaining, plan: Plan, text: &str) -> Plan {
    Plan::Explain(Arc::new(Explained { asked: asked.clone(), plan, text: text.into() }))
}

/// The plan of the query with the statement's own words around it.
fn around(input: &Input<'_>, found: &Wrapped, gathered: &Gathered, code: &'static str, why: &'static str) -> Gathered {
    let before = input.text.get(..found.query.start).unwrap_or_default();
    let behind = input.text.get(found.query.end..found.end).unwrap_or_default();
    Gathered {
        sql: [before, &gathered.sql, behind].concat().into(),
        reason: Reason { code, text: why.into() },
        ..gathered.clone()
    }
}
