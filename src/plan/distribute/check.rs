//! Looks at every node of a statement's tree: what is not known here is refused, what works on one shard only is noted.

use std::ops::ControlFlow;

use sqlparser::ast::{
    CastKind, DataType, Expr, FunctionArguments, Query, Select, SetExpr, TableFactor, Value as Literal, Visit, Visitor,
};

use super::functions::{Fitness, Functions};
use super::once::is_moment;
use super::refuse::{clause, refuse};
use super::scope::parts;
use crate::plan::Refusal;
use crate::sql::lexer::Lexer;
use crate::sql::literal;

/// Columns that PostgreSQL gives every table, and that differ from server to server.
const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"];

/// Functions that the grammar spells without parentheses.
pub(super) const VALUE_FUNCTIONS: [&str; 13] = [
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "current_user",
    "current_role",
    "session_user",
    "user",
    "system_user",
    "current_catalog",
    "current_schema",
    "current_database",
];

/// What a look at the whole tree found.
#[derive(Debug)]
pub(super) struct Findings {
    /// Whether there is a moment that can be computed once for all shards.
    pub(super) has_moment: bool,
    /// The first thing that only one shard can answer.
    pub(super) one_shard: Option<Refusal>,
}

/// Looks at the whole statement.
///
/// # Errors
/// A node that pgherd does not know, or a function that is not fit for sharded data at all.
pub(super) fn check(tree: &impl Visit, functions: Functions<'_>) -> Result<Findings, Refusal> {
    judged(tree, functions, false)
}

/// As [`check`], for a write: `now()` and its like are computed once for all shards.
pub(super) fn check_write(tree: &impl Visit, functions: Functions<'_>) -> Result<Findings, Refusal> {
    judged(tree, functions, true)
}

fn judged(tree: &impl Visit, functions: Functions<'_>, once: bool) -> Result<Findings, Refusal> {
    let mut checker = Checker { functions, one_shard: None, once, has_moment: false };
    match tree.visit(&mut checker) {
        ControlFlow::Break(refusal) => Err(*refusal),
        ControlFlow::Continue(()) => Ok(Findings { one_shard: checker.one_shard, has_moment: checker.has_moment }),
    }
}

/// Whether a date or time in this text would be read relative to the clock.
pub(super) fn names_a_moment(text: &str) -> bool {
    let is_word =
        |word: &str| ["now", "today", "tomorrow", "yesterday"].iter().any(|moment| word.eq_ignore_ascii_case(moment));
    text.split(|c: char| !c.is_ascii_alphabetic()).any(is_word)
}

/// Whether a string in this text would be, as a date or time.
pub(super) fn says_a_moment(text: &str, standard_conforming_strings: bool) -> bool {
    let bytes = text.as_bytes();
    let mut strings = Lexer::new(bytes, standard_conforming_strings).filter(|token| token.kind.is_string());
    strings.any(|token| literal::string(token, bytes).is_none_or(|value| names_a_moment(&value)))
}

struct Checker<'a> {
    functions: Functions<'a>,
    one_shard: Option<Refusal>,
    /// Whether moments can be computed once.
    once: bool,
    has_moment: bool,
}

type Flow = ControlFlow<Box<Refusal>>;

impl Checker<'_> {
    fn only_one_shard(&mut self, refusal: Refusal) {
        self.one_shard.get_or_insert(refusal);
    }

    fn name(&mut self, name: &str, is_qualified: bool, is_quoted: bool) {
        if SYSTEM_COLUMNS.contains(&name) {
            let message = format!("system column {name} differs from shard to shard");
            self.only_one_shard(refuse(
                "system-column",
                message,
                "leave it out, or tie the statement to one shard key",
            ));
        } else if self.once && is_moment(name, false) && !is_qualified && !is_quoted {
            self.has_moment = true;
        } else if VALUE_FUNCTIONS.contains(&name) && !is_qualified && !is_quoted {
            self.only_one_shard(clause("stable-function", &name.to_uppercase()));
        }
    }

    /// `'now'` and its like mean another moment on each shard, whatever type they end up as.
    fn text(&mut self, text: &str) {
        if names_a_moment(text) {
            self.only_one_shard(clause("stable-function", &format!("the constant '{text}'")));
        }
    }

    fn cast(&mut self, data_type: &DataType) {
        if self.functions.catalog.has_user_casts {
            self.only_one_shard(clause("cast", "a cast in a database with user-defined casts"));
        }
        self.object_type(data_type);
    }

    fn object_type(&mut self, data_type: &DataType) {
        let is_reg = match data_type {
            DataType::Regclass => true,
            DataType::Custom(name, _) => parts(name).is_some_and(|(_, name)| name.starts_with("reg")),
            _ => false,
        };
        if is_reg {
            self.only_one_shard(clause(
                "cast",
                "a cast to an object identifier type, which differs from shard to shard,",
            ));
        }
    }

    fn operator(&self, name: &str) -> Result<(), Refusal> {
        if self.functions.is_risky_operator(name) {
            let message = format!("operator {name} is made by a user and not immutable: not supported on sharded data");
            return Err(refuse("operator", message, "use a built-in operator"));
        }
        Ok(())
    }

    fn function(&mut self, function: &sqlparser::ast::Function) -> Result<(), Refusal> {
        let Some((schema, name)) = parts(&function.name) else {
            return Err(refuse("function", "a function's name could not be read", "call it by schema and name"));
        };
        let arguments = match &function.args {
            FunctionArguments::List(list) => list.args.len(),
            FunctionArguments::Subquery(_) => 1,
            FunctionArguments::None => {
                self.name(name, schema.is_some(), false);
                return Ok(());
            }
        };
        // COALESCE and its like are grammar, not functions of the catalog.
        if schema.is_none() && ["coalesce", "nullif", "greatest", "least", "row", "grouping"].contains(&name) {
            return Ok(());
        }
        if VALUE_FUNCTIONS.contains(&name) && schema.is_none() {
            // With a precision it is another one.
            self.only_one_shard(clause("stable-function", &name.to_uppercase()));
            return Ok(());
        }
        let is_plain = schema.is_none_or(|schema| schema == "pg_catalog") && arguments == 0 && function.over.is_none();
        if self.once && is_plain && is_moment(name, true) && self.functions.is_built_in(schema, name) {
            self.has_moment = true;
            return Ok(());
        }
        if self.functions.judge(schema, name, arguments)? == Fitness::OneShard {
            let message = format!("function {name}() can give another result on each shard");
            self.only_one_shard(refuse(
                "volatile-function",
                message,
                "compute its value in the client and pass it as a parameter",
            ));
        }
        Ok(())
    }

    fn expression(&mut self, expr: &Expr) -> Result<(), Refusal> {
        match expr {
            Expr::Identifier(ident) => self.name(&ident.value, false, ident.quote_style.is_some()),
            Expr::CompoundIdentifier(idents) => {
                if let Some(last) = idents.last() {
                    self.name(&last.value, true, true);
                }
            }
            Expr::BinaryOp { op, .. } => self.operator(&op.to_string())?,
            Expr::UnaryOp { op, .. } => self.operator(&op.to_string())?,
            Expr::AnyOp { compare_op, .. } | Expr::AllOp { compare_op, .. } => {
                self.operator(&compare_op.to_string())?
            }
            Expr::Function(function) => self.function(function)?,
            Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, format: None, data_type, .. } => {
                self.cast(data_type)
            }
            Expr::Value(value) => {
                if let Literal::SingleQuotedString(text) = &value.value {
                    self.text(text);
                }
            }
            Expr::TypedString(typed) => {
                self.object_type(&typed.data_type);
                match typed.value.value.clone().into_string() {
                    Some(text) => self.text(&text),
                    None => self.only_one_shard(clause("expression", "a typed constant in this form")),
                }
            }
            Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_) => {
                self.only_one_shard(clause("grouping-sets", "GROUPING SETS, CUBE or ROLLUP"));
            }
            Expr::CompoundFieldAccess { .. }
            | Expr::IsFalse(_)
            | Expr::IsNotFalse(_)
            | Expr::IsTrue(_)
            | Expr::IsNotTrue(_)
            | Expr::IsNull(_)
            | Expr::IsNotNull(_)
            | Expr::IsUnknown(_)
            | Expr::IsNotUnknown(_)
            | Expr::IsDistinctFrom(..)
            | Expr::IsNotDistinctFrom(..)
            | Expr::InList { .. }
            | Expr::InSubquery { .. }
            | Expr::Between { .. }
            | Expr::Like { .. }
            | Expr::ILike { .. }
            | Expr::SimilarTo { .. }
            | Expr::AtTimeZone { .. }
            | Expr::Extract { .. }
            | Expr::Ceil { .. }
            | Expr::Floor { .. }
            | Expr::Position { .. }
            | Expr::Substring { .. }
            | Expr::Trim { .. }
            | Expr::Overlay { .. }
            | Expr::Collate { .. }
            | Expr::Nested(_)
            | Expr::Case { .. }
            | Expr::Exists { .. }
            | Expr::Subquery(_)
            | Expr::Tuple(_)
            | Expr::Array(_)
            | Expr::Interval(_) => {}
            _ => {
                return Err(refuse(
                    "expression",
                    "an expression that pgherd does not know",
                    "write it in standard SQL",
                ));
            }
        }
        Ok(())
    }

    fn query(&self, query: &Query) -> Result<(), Refusal> {
        let is_foreign = query.for_clause.is_some() || query.settings.is_some() || query.format_clause.is_some();
        if is_foreign || !query.pipe_operators.is_empty() {
            return Err(refuse("query", "a query clause that PostgreSQL does not have", "leave it out"));
        }
        match &*query.body {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => Err(refuse(
                "data-modifying-cte",
                "a data-modifying WITH is not supported on sharded data",
                "send the write as a statement of its own",
            )),
            _ => Ok(()),
        }
    }

    fn select(&self, select: &Select) -> Result<(), Refusal> {
        if select.into.is_some() {
            return Err(refuse(
                "select-into",
                "SELECT INTO is not supported on sharded data",
                "create the table on the primary",
            ));
        }
        let is_foreign = select.top.is_some()
            || select.exclude.is_some()
            || !select.lateral_views.is_empty()
            || select.prewhere.is_some()
            || !select.connect_by.is_empty()
            || !select.cluster_by.is_empty()
            || !select.distribute_by.is_empty()
            || !select.sort_by.is_empty()
            || select.qualify.is_some()
            || select.value_table_mode.is_some()
            || select.select_modifiers.is_some()
            || select.flavor != sqlparser::ast::SelectFlavor::Standard;
        if is_foreign {
            return Err(refuse("query", "a query clause that PostgreSQL does not have", "leave it out"));
        }
        Ok(())
    }
}

fn flow(result: Result<(), Refusal>) -> Flow {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(refusal) => ControlFlow::Break(Box::new(refusal)),
    }
}

impl Visitor for Checker<'_> {
    type Break = Box<Refusal>;

    fn pre_visit_query(&mut self, query: &Query) -> Flow {
        flow(self.query(query))
    }

    fn pre_visit_select(&mut self, select: &Select) -> Flow {
        flow(self.select(select))
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> Flow {
        flow(self.expression(expr))
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> Flow {
        match factor {
            TableFactor::Table { args: None, sample: Some(_), .. } => {
                self.only_one_shard(clause("tablesample", "TABLESAMPLE"));
                ControlFlow::Continue(())
            }
            TableFactor::Table { name, args: Some(args), .. } => {
                let judged = parts(name)
                    .ok_or_else(|| {
                        refuse("function", "a function's name could not be read", "call it by schema and name")
                    })
                    .and_then(|(schema, name)| self.functions.judge(schema, name, args.args.len()));
                flow(judged.map(|fitness| {
                    if fitness == Fitness::OneShard {
                        self.only_one_shard(clause("volatile-function", "a function in FROM"));
                    }
                }))
            }
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::NestedJoin { .. }
            | TableFactor::UNNEST { .. } => ControlFlow::Continue(()),
            _ => flow(Err(refuse("from", "a FROM item that pgherd does not know", "join plain tables"))),
        }
    }
}
