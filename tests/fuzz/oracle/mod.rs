//! Facts beside the tree of PostgreSQL's own parser: whatever it accepts, pgherd must read the same, or call it opaque.

use pg_query::protobuf::{DiscardMode, ParseResult, RangeVar, TransactionStmtKind, VariableSetKind};
use pg_query::{Node, NodeEnum, NodeRef};
use pgherd::sql::Analyzer;
use pgherd::sql::facts::{Class, Effect, Statement, TransactionControl};

/// `DECLARE ... WITH HOLD` among a cursor's options.
const CURSOR_OPT_HOLD: i32 = 0x20;

/// Compares the two readings of a text, or says nothing of one that PostgreSQL refuses.
///
/// # Errors
/// What differs.
pub fn compare(data: &[u8]) -> Result<(), String> {
    let Ok(text) = std::str::from_utf8(data) else { return Ok(()) };
    if text.contains('\0') || text.len() > 10_000 {
        return Ok(());
    }
    let Ok(parsed) = pg_query::parse(text, pg_query::ParserOptions::default()) else { return Ok(()) };
    let tree = parsed.protobuf;
    let facts = Analyzer::with_memo_bytes(0).facts(data, true);
    if tree.stmts.len() != facts.statements.len() {
        return Err(format!("PostgreSQL reads {} statements, pgherd {}", tree.stmts.len(), facts.statements.len()));
    }
    for (raw, statement) in tree.stmts.iter().zip(&facts.statements) {
        let Some(node) = raw.stmt.as_ref().and_then(|node| node.node.as_ref()) else { continue };
        one(node, statement).map_err(|what| format!("{what}: {:?} {:?}", statement.class, statement.effects))?;
        let alone = ParseResult { version: tree.version, stmts: vec![raw.clone()] };
        if statement.class == Class::Read {
            read(&alone, statement, text)?;
        } else if statement.class != Class::Opaque {
            reach(&alone, statement)?;
        }
    }
    Ok(())
}

/// The kind of statement, and what it does to the session.
fn one(node: &NodeEnum, statement: &Statement) -> Result<(), String> {
    let class = statement.class;
    let does = |effect: Effect| statement.effects.contains(&effect);
    let fine = match node {
        NodeEnum::SelectStmt(_) => matches!(class, Class::Read | Class::Write | Class::Opaque),
        NodeEnum::InsertStmt(_) | NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_) | NodeEnum::MergeStmt(_) => {
            matches!(class, Class::Write | Class::Opaque)
        }
        NodeEnum::TransactionStmt(it) => class == Class::Transaction(control(it)) || (it.kind <= 2 && begins(class)),
        NodeEnum::VariableSetStmt(it) => setting(it, statement),
        NodeEnum::VariableShowStmt(_) => class == Class::Show,
        NodeEnum::DiscardStmt(it) => does(match it.target() {
            DiscardMode::DiscardAll => Effect::DiscardAll,
            DiscardMode::DiscardTemp => Effect::DiscardTemp,
            _ => Effect::Discard,
        }),
        NodeEnum::CopyStmt(it) => {
            let client = it.filename.is_empty() && !it.is_program;
            match (client, it.is_from, it.query.is_some()) {
                (true, true, _) => class == Class::CopyIn,
                (true, false, false) => class == Class::CopyOut,
                (true, false, true) => matches!(class, Class::CopyOut | Class::Write | Class::Opaque),
                _ => !matches!(class, Class::CopyIn | Class::CopyOut | Class::Read),
            }
        }
        NodeEnum::DeclareCursorStmt(it) if it.options & CURSOR_OPT_HOLD != 0 => does(Effect::HoldCursor),
        NodeEnum::DeclareCursorStmt(_) => does(Effect::Cursor),
        NodeEnum::ClosePortalStmt(_) => does(Effect::CloseCursor),
        NodeEnum::FetchStmt(_) => class == Class::Session,
        NodeEnum::PrepareStmt(it) => does(Effect::Prepare(it.name.as_str().into())),
        NodeEnum::ExecuteStmt(it) => does(Effect::Execute(it.name.as_str().into())) && class == Class::Opaque,
        NodeEnum::DeallocateStmt(it) if it.isall => does(Effect::DeallocateAll),
        NodeEnum::DeallocateStmt(it) => does(Effect::Deallocate(it.name.as_str().into())),
        NodeEnum::ListenStmt(_) => does(Effect::Listen),
        NodeEnum::UnlistenStmt(_) => does(Effect::Unlisten),
        NodeEnum::LoadStmt(_) => does(Effect::Load),
        NodeEnum::DoStmt(_) | NodeEnum::CallStmt(_) => does(Effect::Opaque) && class == Class::Opaque,
        NodeEnum::ExplainStmt(it) => explained(it, statement),
        NodeEnum::CreateStmt(it) => writes(class) && temporary(it.relation.as_ref(), statement),
        NodeEnum::CreateTableAsStmt(it) => {
            writes(class) && temporary(it.into.as_ref().and_then(|into| into.rel.as_ref()), statement)
        }
        NodeEnum::ViewStmt(it) => writes(class) && temporary(it.view.as_ref(), statement),
        NodeEnum::CreateSeqStmt(it) => writes(class) && temporary(it.sequence.as_ref(), statement),
        _ => writes(class) || class == Class::Utility,
    };
    if fine { Ok(()) } else { Err(format!("pgherd misreads {}", name_of(node))) }
}

fn writes(class: Class) -> bool {
    matches!(class, Class::Ddl | Class::Write | Class::Opaque)
}

fn temporary(relation: Option<&RangeVar>, statement: &Statement) -> bool {
    let is = relation.is_some_and(|relation| relation.relpersistence == "t" || relation.schemaname == "pg_temp");
    !is || statement.class == Class::Opaque || statement.effects.contains(&Effect::TemporaryObject)
}

fn begins(class: Class) -> bool {
    use TransactionControl::{Begin, BeginOther, BeginReadOnly};
    matches!(class, Class::Transaction(Begin | BeginOther | BeginReadOnly))
}

fn control(it: &pg_query::protobuf::TransactionStmt) -> TransactionControl {
    match it.kind() {
        TransactionStmtKind::TransStmtCommit | TransactionStmtKind::TransStmtRollback if it.chain => {
            TransactionControl::Chain
        }
        TransactionStmtKind::TransStmtCommit => TransactionControl::Commit,
        TransactionStmtKind::TransStmtRollback => TransactionControl::Rollback,
        TransactionStmtKind::TransStmtSavepoint => TransactionControl::Savepoint,
        TransactionStmtKind::TransStmtRelease => TransactionControl::Release,
        TransactionStmtKind::TransStmtRollbackTo => TransactionControl::RollbackTo,
        TransactionStmtKind::TransStmtPrepare => TransactionControl::Prepare,
        TransactionStmtKind::TransStmtCommitPrepared | TransactionStmtKind::TransStmtRollbackPrepared => {
            TransactionControl::FinishPrepared
        }
        _ => TransactionControl::Begin,
    }
}

fn setting(it: &pg_query::protobuf::VariableSetStmt, statement: &Statement) -> bool {
    let name: Box<str> = it.name.to_ascii_lowercase().into();
    let does =
        |effect: Effect| statement.effects.contains(&effect) || statement.effects.contains(&Effect::OpaqueSettings);
    match it.kind() {
        _ if &*name == "seed" => does(Effect::ServerState),
        VariableSetKind::VarSetMulti => {
            // SET TRANSACTION and SET SESSION CHARACTERISTICS, or one of a snapshot.
            matches!(statement.class, Class::Transaction(TransactionControl::SetTransaction))
        }
        VariableSetKind::VarResetAll => does(Effect::ResetAll),
        VariableSetKind::VarReset => does(Effect::Reset(name)),
        _ if it.is_local => does(Effect::SetLocal(name)),
        VariableSetKind::VarSetValue => does(Effect::Set(name.clone())) || does(Effect::Reset(name)),
        _ => does(Effect::Set(name.clone())) || does(Effect::Reset(name)),
    }
}

fn explained(it: &pg_query::protobuf::ExplainStmt, statement: &Statement) -> bool {
    let option = |wanted: &str| {
        it.options.iter().rev().find_map(|node| match node.node.as_ref()? {
            NodeEnum::DefElem(it) if it.defname == wanted => Some(off(it.arg.as_deref())),
            _ => None,
        })
    };
    if option("route").is_some() {
        return true;
    }
    let runs = option("analyze").is_some_and(|off| !off);
    let inner = it.query.as_ref().and_then(|node| node.node.as_ref());
    match inner {
        Some(NodeEnum::SelectStmt(_)) if runs => matches!(statement.class, Class::Read | Class::Write | Class::Opaque),
        Some(NodeEnum::RefreshMatViewStmt(_)) => statement.class == Class::Utility && !statement.writes.is_empty(),
        Some(_) if runs => !matches!(statement.class, Class::Read | Class::Utility | Class::Show),
        _ => !matches!(statement.class, Class::Read | Class::Show),
    }
}

/// Whether an option's value turns it off.
fn off(value: Option<&Node>) -> bool {
    match value.and_then(|node| node.node.as_ref()) {
        Some(NodeEnum::String(text)) => ["off", "false"].contains(&text.sval.to_ascii_lowercase().as_str()),
        Some(NodeEnum::Integer(number)) => number.ival == 0,
        Some(NodeEnum::Boolean(it)) => !it.boolval,
        _ => false,
    }
}

/// What is called a read writes nothing, locks only what it says, and names all that it reads and calls.
fn read(tree: &ParseResult, statement: &Statement, text: &str) -> Result<(), String> {
    let nodes = tree.nodes();
    let ctes: Vec<&str> = nodes
        .iter()
        .filter_map(|(node, ..)| match node {
            NodeRef::CommonTableExpr(it) => Some(it.ctename.as_str()),
            _ => None,
        })
        .collect();
    for (node, ..) in &nodes {
        match node {
            NodeRef::InsertStmt(_) | NodeRef::UpdateStmt(_) | NodeRef::DeleteStmt(_) | NodeRef::MergeStmt(_) => {
                return Err("a read that writes".into());
            }
            NodeRef::SelectStmt(it) => {
                if it.into_clause.is_some() {
                    return Err("a read with INTO".into());
                }
                if !it.locking_clause.is_empty() && !statement.locks_rows {
                    return Err("a read whose locks were not seen".into());
                }
            }
            NodeRef::RangeVar(it) => {
                let schema = (!it.schemaname.is_empty()).then_some(it.schemaname.as_str());
                let known =
                    |name: &pgherd::sql::facts::Name| *name.name == it.relname && name.schema.as_deref() == schema;
                if !statement.reads.iter().any(known) && !(schema.is_none() && ctes.contains(&it.relname.as_str())) {
                    return Err(format!("{}.{} is read: {:?}", it.schemaname, it.relname, statement.reads));
                }
            }
            NodeRef::FuncCall(it) => called(it, statement, text)?,
            NodeRef::ParamRef(it) if it.number > i32::from(statement.parameters) => {
                return Err(format!("${} is a parameter", it.number));
            }
            _ => {}
        }
    }
    Ok(())
}

fn called(it: &pg_query::protobuf::FuncCall, statement: &Statement, text: &str) -> Result<(), String> {
    let parts: Vec<&str> = it
        .funcname
        .iter()
        .filter_map(|node| match node.node.as_ref() {
            Some(NodeEnum::String(part)) => Some(part.sval.as_str()),
            _ => None,
        })
        .collect();
    let Some((name, schema)) = parts.split_last() else { return Ok(()) };
    // What the grammar makes of EXTRACT, OVERLAPS, AT TIME ZONE and their like.
    let spelled = it.funcformat() == pg_query::protobuf::CoercionForm::CoerceSqlSyntax
        || (schema == ["pg_catalog"] && !text.to_ascii_lowercase().contains("pg_catalog"));
    let known = statement
        .functions
        .iter()
        .any(|known| *known.name == **name && known.schema.as_deref() == schema.last().copied());
    let bare = schema.is_empty() && statement.value_functions.iter().any(|known| **known == **name);
    if known || spelled || bare { Ok(()) } else { Err(format!("{parts:?} is called: {:?}", statement.functions)) }
}

/// What is neither a read nor opaque names what it writes.
fn reach(tree: &ParseResult, statement: &Statement) -> Result<(), String> {
    let nodes = tree.nodes();
    for (node, ..) in &nodes {
        let target = match node {
            NodeRef::InsertStmt(it) => it.relation.as_ref(),
            NodeRef::UpdateStmt(it) => it.relation.as_ref(),
            NodeRef::DeleteStmt(it) => it.relation.as_ref(),
            NodeRef::MergeStmt(it) => it.relation.as_ref(),
            NodeRef::CopyStmt(it) if it.is_from => it.relation.as_ref(),
            _ => None,
        };
        let Some(target) = target else { continue };
        let schema = (!target.schemaname.is_empty()).then_some(target.schemaname.as_str());
        let named = |name: &&pgherd::sql::facts::Name| *name.name == target.relname && name.schema.as_deref() == schema;
        let by_word = statement.identifiers.iter().any(|word| **word == target.relname);
        let class = statement.class;
        let found = statement.writes.iter().any(|name| named(&name))
            || (class == Class::Utility && statement.reads.iter().any(|name| named(&name)))
            || (matches!(class, Class::Ddl | Class::Session) && by_word);
        if !found {
            return Err(format!("{}.{} is written: {:?}", target.schemaname, target.relname, statement.writes));
        }
    }
    Ok(())
}

fn name_of(node: &NodeEnum) -> String {
    let shown = format!("{node:?}");
    shown.split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}
