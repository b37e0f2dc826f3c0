//! A snapshot of what a database's catalog says about relations, functions and types: plain data, read by the planner.

use std::collections::HashMap;
use std::sync::Arc;

/// An object identifier of the server that the snapshot was read from.
pub type Oid = u32;

/// Objects with smaller oids are PostgreSQL's own, with the same oids on every server.
pub const FIRST_USER_OID: Oid = 16384;

/// One database's catalog at one moment. Names are as PostgreSQL stores them (folded, unquoted).
#[derive(Debug, Default, PartialEq)]
pub struct Catalog {
    /// Grows by one each time a snapshot differs from the one before.
    pub version: u64,
    /// Relations of every schema, `pg_catalog` and `information_schema` included, by oid.
    pub relations: HashMap<Oid, Arc<Relation>>,
    /// Relation oids by (schema, name).
    pub relation_by_name: HashMap<(Box<str>, Box<str>), Oid>,
    /// Functions by name, in every schema.
    pub functions: HashMap<Box<str>, Vec<Function>>,
    /// Names of those functions by oid.
    pub function_names: HashMap<Oid, Box<str>>,
    /// Types by oid.
    pub types: HashMap<Oid, Type>,
    /// Collations by oid.
    pub collations: HashMap<Oid, Collation>,
    /// User-defined operators by name (`<->`): any statement that uses one of these names is judged by its function.
    pub user_operators: HashMap<Box<str>, Vec<Volatility>>,
    /// Whether there is a user's view whose query is known.
    pub has_views: bool,
    /// Whether user-defined casts exist; expressions may then call functions that the text does not show.
    pub has_user_casts: bool,
    /// Whether one of those functions is not immutable.
    pub has_impure_user_casts: bool,
    /// A hash of all privileges, owners, memberships and policies.
    pub privileges: Box<str>,
    /// Schemas by name, in no order.
    pub schemas: Vec<Box<str>>,
    /// The collation that oid 100 (`default`) stands for.
    pub default_collation: Option<Collation>,
    /// `default_transaction_isolation` of the database.
    pub default_isolation: Box<str>,
    /// `server_version_num`, for example 150018.
    pub server_version: u32,
}

/// A table, view or other entry of `pg_class`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its oid on the server the snapshot came from.
    pub oid: Oid,
    /// Its schema.
    pub schema: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// What it is.
    pub kind: RelationKind,
    /// For an index, or the sequence of a column: its table; else 0.
    pub table: Oid,
    /// Whether it is permanent, unlogged or temporary.
    pub persistence: Persistence,
    /// Whether row-level security is enabled on it or, for a view, on a base.
    pub row_security: bool,
    /// What decides which rows are shown, where `row_security` holds.
    pub row_rules: RowRules,
    /// For a view: whether it runs with its invoker's rights.
    pub security_invoker: bool,
    /// Live columns in attribute order; empty for relations of `pg_catalog` and `information_schema`.
    pub columns: Vec<Column>,
    /// Columns of the primary key, by name.
    pub primary_key: Vec<Box<str>>,
    /// What a read of it reads: itself, its partitions and children, and for a view its bases, to the end.
    pub reads: Vec<Oid>,
    /// For a view: functions that its definition calls, operators' and inner views' included. `now` stands for all that ties it to
    /// the moment or to a row's place (`CURRENT_DATE`, row locks, system columns).
    pub view_functions: Vec<Oid>,
    /// For a view of a server whose views are read: its query, names written out.
    pub definition: Option<Arc<str>>,
    /// What a write to it can change: itself, partitions, parents, foreign-key actions and rules, to the end.
    pub writes: Vec<Oid>,
    /// A trigger or rule can write what the catalog does not show: a write to it puts the whole database in doubt.
    pub writes_opaque: bool,
    /// Its own enabled triggers that may change a row before it is stored; those of its partitions are theirs.
    pub row_triggers: Vec<RowTrigger>,
    /// Its foreign keys.
    pub foreign_keys: Vec<ForeignKey>,
    /// Whether a foreign key refers to it, be it its own.
    pub is_referenced: bool,
    /// Whether something that must be unique in it may be judged later than row by row.
    pub is_judged_late: bool,
}

/// A `BEFORE ROW` trigger for `INSERT` or `UPDATE` whose function assigns something in the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowTrigger {
    /// The schema of its function.
    pub schema: Box<str>,
    /// Its function.
    pub function: Box<str>,
    /// Whether `INSERT` fires it.
    pub on_insert: bool,
    /// Whether `UPDATE` does.
    pub on_update: bool,
    /// What the function may assign.
    pub assigns: Assigns,
}

/// What code may assign in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assigns {
    /// Nobody can tell: any column.
    Anything,
    /// These columns.
    Columns(Vec<Box<str>>),
}

/// A foreign key of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// Its columns.
    pub columns: Vec<Box<str>>,
    /// The relation that it refers to.
    pub table: Oid,
    /// The columns there, one for each.
    pub referenced: Vec<Box<str>>,
    /// Whether it is known to hold for all rows.
    pub is_valid: bool,
}

/// What row-level security makes a read depend on: the policies of everything that it reads, whoever they are for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowRules {
    /// Functions that the policies call, operators' included.
    pub functions: Vec<Oid>,
    /// Settings that they ask for by `current_setting`.
    pub settings: Vec<Box<str>>,
    /// Whether they depend on more than can be told.
    pub opaque: bool,
}

/// `pg_class.relkind`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelationKind {
    /// `r`
    Table,
    /// `p`
    PartitionedTable,
    /// `v`
    View,
    /// `m`
    MaterializedView,
    /// `f`
    ForeignTable,
    /// `S`
    Sequence,
    /// Everything else.
    Other,
}

/// `pg_class.relpersistence`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// `p`
    Permanent,
    /// `u`
    Unlogged,
    /// `t`
    Temporary,
}

/// One column of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: Box<str>,
    /// Its type.
    pub type_oid: Oid,
    /// Its type modifier, -1 where there is none.
    pub typmod: i32,
    /// Its collation, 0 where the type has none.
    pub collation: Oid,
    /// Whether it is declared NOT NULL.
    pub not_null: bool,
    /// Whether it has a default, is generated, or is an identity column.
    pub has_default: bool,
    /// Whether it is computed from the row's other columns.
    pub is_generated: bool,
    /// What sort of default.
    pub default: DefaultKind,
    /// Its expression and the column's type, where it is of [`DefaultKind::Moment`] and made of PostgreSQL's own functions.
    pub moment: Option<(Box<str>, Box<str>)>,
}

/// What the default of a column depends on, in the order of how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DefaultKind {
    /// There is none: NULL.
    None,
    /// Nothing but the row itself.
    Constant,
    /// Each row gets its own: a sequence's next value, a random number.
    PerRow,
    /// The statement or the session: the time, the user. Or nobody knows.
    Moment,
}

/// `pg_proc.provolatile`
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Volatility {
    /// Same arguments, same result, for ever.
    Immutable,
    /// Same arguments, same result, within one statement.
    Stable,
    /// Anything, side effects included.
    Volatile,
}

/// `pg_proc.prokind`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FunctionKind {
    /// `f`
    Function,
    /// `a`
    Aggregate,
    /// `w`
    Window,
    /// `p`
    Procedure,
}

/// One function, aggregate or procedure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its oid.
    pub oid: Oid,
    /// Its schema.
    pub schema: Box<str>,
    /// What it is.
    pub kind: FunctionKind,
    /// How it may behave; an aggregate as the worst of its support functions, since `pg_proc` calls every aggregate immutable.
    pub volatility: Volatility,
    /// `SECURITY DEFINER`
    pub security_definer: bool,
    /// Whether it was made by a user (oid of 16384 or more) or outside `pg_catalog`.
    pub user_defined: bool,
    /// Whether it belongs to an extension that comes with PostgreSQL and whose immutable functions do nothing but compute.
    pub of_contrib: bool,
    /// Argument types in order.
    pub arguments: Vec<Oid>,
    /// What it returns.
    pub result: Oid,
}

/// One entry of `pg_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    /// Its schema.
    pub schema: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// `b` base, `c` composite, `d` domain, `e` enum, `r` range, `m` multirange, `p` pseudo.
    pub kind: char,
    /// The type below a domain, else 0.
    pub base: Oid,
    /// The element type of an array, else 0.
    pub element: Oid,
    /// `typcollation`, 0 where there is none.
    pub collation: Oid,
    /// A hash of an enum's labels in their order, empty for all else.
    pub labels: Box<str>,
    /// What sort of default a domain has.
    pub default: DefaultKind,
}

/// One entry of `pg_collation`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collation {
    /// Its schema.
    pub schema: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// `c` libc, `i` ICU, `b` builtin, `d` the database's default.
    pub provider: char,
    /// `collcollate`, or the ICU or builtin locale.
    pub locale: Box<str>,
    /// Whether equal means equal bytes.
    pub deterministic: bool,
}

impl Collation {
    /// Whether it sorts by bytes: C, POSIX, `ucs_basic`, builtin C.UTF-8.
    pub fn is_byte_order(&self) -> bool {
        self.deterministic
            && match self.provider {
                'c' | 'd' => matches!(&*self.locale, "C" | "POSIX"),
                'b' => matches!(&*self.locale, "C" | "C.UTF-8"),
                _ => false,
            }
    }
}

impl Catalog {
    /// The relation of that schema and name.
    pub fn relation(&self, schema: &str, name: &str) -> Option<&Arc<Relation>> {
        self.relations.get(self.relation_by_name.get(&(schema.into(), name.into()))?)
    }

    /// The first relation of that name along `search_path` (schemas as PostgreSQL resolves them, `pg_catalog` included).
    pub fn resolve(&self, search_path: &[Box<str>], name: &str) -> Option<&Arc<Relation>> {
        search_path.iter().find_map(|schema| self.relation(schema, name))
    }
}
