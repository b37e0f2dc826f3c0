//! What one statement text does, read off its syntax alone: no catalog, no session, no literal's value.

use std::sync::Arc;

use super::fingerprint::Fingerprint;

/// Facts of a whole query string, which may hold several statements.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Same for texts that differ only in literals, comments and white space.
    pub fingerprint: Fingerprint,
    /// One element a statement, in order; empty for a string with nothing in it.
    pub statements: Vec<Statement>,
    /// What the text asks of pgherd in a comment (`/* pgherd: cache=off */`).
    pub hint: Hint,
}

/// Facts of one statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// What sort of statement it is.
    pub class: Class,
    /// Relations it names to read from.
    pub reads: Vec<Name>,
    /// Relations it names to write to.
    pub writes: Vec<Name>,
    /// Functions it calls, aggregates included.
    pub functions: Vec<Name>,
    /// Operators outside PostgreSQL's usual ones (`+ - * / % ^ = <> != < > <= >= || ~ LIKE ...`).
    pub operators: Vec<Box<str>>,
    /// Type names that casts and typed literals use.
    pub casts: Vec<Name>,
    /// `CURRENT_DATE`, `CURRENT_USER` and their like, which the grammar spells without parentheses.
    pub value_functions: Vec<Box<str>>,
    /// Identifiers of an opaque statement, its dollar-quoted bodies included: what it could reach.
    pub identifiers: Vec<Box<str>>,
    /// Every identifier of a statement that is known by its keywords (DDL, maintenance, LOCK), with what stands before its dot:
    /// what it could mean as a relation's name.
    pub mentions: Vec<Name>,
    /// What it does to the session.
    pub effects: Vec<Effect>,
    /// What it looks like.
    pub shape: Shape,
    /// `SELECT ... FOR UPDATE` and its like.
    pub locks_rows: bool,
    /// Highest `$n`.
    pub parameters: u16,
    /// Uses `ctid`, `xmin`, `tableoid` or another column that the server makes up.
    pub system_columns: bool,
    /// EXPLAIN, with or without ANALYZE: what comes back is about the statement, not its rows.
    pub explain: bool,
    /// Last parts of qualified names in expressions: `t.f` may call the function `f` on the row `t`.
    pub fields: Vec<Box<str>>,
    /// What is cast to a date or time type and is neither a constant nor a parameter: as text it could say `now`.
    pub time_casts: Vec<Operand>,
    /// The savepoint that SAVEPOINT, RELEASE and ROLLBACK TO name, as PostgreSQL folds it.
    pub savepoint: Option<Box<str>>,
    /// The cursor that DECLARE, FETCH, MOVE and CLOSE name, likewise.
    pub cursor: Option<Box<str>>,
}

/// What an expression is made from, as far as its type matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// A column of that name.
    Column(Box<str>),
    /// The result of that function.
    Function(Name),
    /// Anything else.
    Other,
}

impl Statement {
    /// A statement of that class of which nothing else is known yet.
    pub fn new(class: Class) -> Self {
        Self {
            class,
            reads: Vec::new(),
            writes: Vec::new(),
            functions: Vec::new(),
            operators: Vec::new(),
            casts: Vec::new(),
            value_functions: Vec::new(),
            identifiers: Vec::new(),
            mentions: Vec::new(),
            effects: Vec::new(),
            shape: Shape::default(),
            locks_rows: false,
            parameters: 0,
            system_columns: false,
            explain: false,
            fields: Vec::new(),
            time_casts: Vec::new(),
            savepoint: None,
            cursor: None,
        }
    }
}

/// What sort of statement it is. The order is that of strength: a string is as strong as its strongest statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Nothing but comments and white space.
    Empty,
    /// SELECT, VALUES, TABLE, EXPLAIN of those: reads by its syntax; functions are judged by the planner.
    Read,
    /// `SHOW x`
    Show,
    /// `EXPLAIN (ROUTE) ...`: pgherd's own.
    ExplainRoute,
    /// SET, RESET, DISCARD, LISTEN, PREPARE, DECLARE and their like: see the effects.
    Session,
    /// BEGIN, COMMIT and their like.
    Transaction(TransactionControl),
    /// `COPY ... TO STDOUT`
    CopyOut,
    /// `COPY ... FROM STDIN`
    CopyIn,
    /// INSERT, UPDATE, DELETE, MERGE, SELECT INTO, CTEs with DML.
    Write,
    /// TRUNCATE, CREATE, ALTER, DROP, GRANT, COMMENT and their like.
    Ddl,
    /// VACUUM, ANALYZE, CHECKPOINT, REINDEX, CLUSTER, LOCK, REFRESH, NOTIFY.
    Utility,
    /// DO, CALL, EXECUTE of an unknown statement, what sqlparser cannot read, and every node we do not know.
    Opaque,
}

/// BEGIN, COMMIT and their like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TransactionControl {
    /// BEGIN or START TRANSACTION with nothing said, or READ COMMITTED, or READ WRITE.
    Begin,
    /// BEGIN READ ONLY at READ COMMITTED or unsaid isolation.
    BeginReadOnly,
    /// BEGIN with REPEATABLE READ, SERIALIZABLE, or DEFERRABLE.
    BeginOther,
    /// COMMIT or END.
    Commit,
    /// ROLLBACK or ABORT.
    Rollback,
    /// COMMIT AND CHAIN
    CommitAndChain,
    /// ROLLBACK AND CHAIN
    RollbackAndChain,
    /// SAVEPOINT
    Savepoint,
    /// RELEASE SAVEPOINT
    Release,
    /// ROLLBACK TO SAVEPOINT
    RollbackTo,
    /// SET TRANSACTION with REPEATABLE READ, SERIALIZABLE, DEFERRABLE or a snapshot; SET SESSION CHARACTERISTICS.
    SetTransaction,
    /// SET TRANSACTION with READ COMMITTED, or READ WRITE, and no more.
    SetTransactionPlain,
    /// SET TRANSACTION READ ONLY at READ COMMITTED or unsaid isolation.
    SetTransactionReadOnly,
    /// SET CONSTRAINTS ALL
    SetAllConstraints,
    /// SET CONSTRAINTS with names
    SetConstraints,
    /// PREPARE TRANSACTION
    Prepare,
    /// COMMIT PREPARED, ROLLBACK PREPARED
    FinishPrepared,
}

impl TransactionControl {
    /// Whether it is SET TRANSACTION in any form.
    pub fn sets_transaction(self) -> bool {
        matches!(self, Self::SetTransaction | Self::SetTransactionPlain | Self::SetTransactionReadOnly)
    }
}

/// A name of one or two parts, folded as PostgreSQL folds it. Three parts: the first must be the database and is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// The schema, where the text gives one.
    pub schema: Option<Box<str>>,
    /// The name itself.
    pub name: Box<str>,
}

/// What a statement does to the session beyond its transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// `SET x`, or `set_config('x', ..., false)`; `role` and `session_authorization` are settings too.
    Set(Box<str>),
    /// `SET LOCAL x`: undone at the transaction's end by the server itself.
    SetLocal(Box<str>),
    /// `RESET x`, `SET x TO DEFAULT`
    Reset(Box<str>),
    /// `SET LOCAL x TO DEFAULT`
    ResetLocal(Box<str>),
    /// `RESET ALL`
    ResetAll,
    /// `DISCARD ALL`
    DiscardAll,
    /// `DISCARD PLANS | SEQUENCES`
    Discard,
    /// `DISCARD TEMP`
    DiscardTemp,
    /// Settings change in a way that the text does not show (`set_config` with an argument that is not a constant).
    OpaqueSettings,
    /// `PREPARE name`
    Prepare(Box<str>),
    /// `EXECUTE name`
    Execute(Box<str>),
    /// `DEALLOCATE name`
    Deallocate(Box<str>),
    /// `DEALLOCATE ALL`
    DeallocateAll,
    /// `LISTEN x`; the channel's name as PostgreSQL folds it, empty where it cannot be read
    Listen(Box<str>),
    /// `UNLISTEN x`, likewise
    Unlisten(Box<str>),
    /// `UNLISTEN *`
    UnlistenAll,
    /// `pg_listening_channels()`: shows what the server connection listens to
    ListeningShown,
    /// CREATE TEMP, SELECT INTO TEMP
    TemporaryObject,
    /// `DECLARE ... WITH HOLD`
    HoldCursor,
    /// `DECLARE` without HOLD: ends with the transaction
    Cursor,
    /// `CLOSE x`
    CloseCursor,
    /// `pg_advisory_lock` and its like, held by the session
    AdvisoryLock,
    /// `pg_advisory_unlock...`
    AdvisoryUnlock,
    /// `currval`, `lastval`: reads what this session's sequences did
    SequenceState,
    /// `pg_prepared_statements`: shows what the server connection holds
    StatementsShown,
    /// `setseed`, `pg_export_snapshot`, `lo_open` and other state that lives in the server's session
    ServerState,
    /// `LOAD`
    Load,
    /// DO, CALL, opaque text: anything might have happened
    Opaque,
}

/// What a SELECT looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shape {
    /// Calls an aggregate (judged by name; the planner asks the catalog).
    pub aggregate: bool,
    /// Has GROUP BY.
    pub group_by: bool,
    /// Has DISTINCT.
    pub distinct: bool,
    /// Calls a window function.
    pub window: bool,
    /// Has UNION, INTERSECT or EXCEPT.
    pub set_operation: bool,
    /// Reads from two relations or more.
    pub join: bool,
    /// Has a sub-query or CTE.
    pub subquery: bool,
    /// Has `column = literal or parameter` among the conjuncts of its WHERE.
    pub key_equality: bool,
    /// Has TABLESAMPLE.
    pub sampled: bool,
}

impl Shape {
    /// Whether the shape alone says OLAP: an aggregate, grouping, DISTINCT, window, set operation, or a join without a key equality.
    pub fn is_analytical(self) -> bool {
        self.aggregate
            || self.group_by
            || self.distinct
            || self.window
            || self.set_operation
            || (self.join && !self.key_equality)
    }
}

/// What a comment in the text asks of pgherd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hint {
    /// `cache=off` or `cache=on`
    pub cache: Option<bool>,
    /// `ttl=30s`, in seconds
    pub ttl_seconds: Option<u32>,
    /// `route=primary` or `route=replica`
    pub route: Option<Route>,
}

/// Where a hint sends a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// `route=primary`
    Primary,
    /// `route=replica`
    Replica,
}

impl Name {
    /// A name without a schema.
    pub fn bare(name: &str) -> Self {
        Self { schema: None, name: name.into() }
    }
}

impl Facts {
    /// The only statement, if the string holds exactly one.
    pub fn single(&self) -> Option<&Statement> {
        match self.statements.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The strongest class of all statements.
    pub fn class(&self) -> Class {
        self.statements.iter().map(|statement| statement.class).max().unwrap_or(Class::Empty)
    }

    /// Every effect of every statement, in order.
    pub fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.statements.iter().flat_map(|statement| statement.effects.iter())
    }
}

/// Facts as they are shared.
pub type SharedFacts = Arc<Facts>;
