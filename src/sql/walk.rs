//! Facts of queries and DML, read off sqlparser's tree. A node or a field that is not known here makes the statement opaque.

use sqlparser::ast::{
    self, Expr, GroupByExpr, LimitClause, ObjectName, ObjectNamePart, OrderByKind, Query, Select, SetExpr,
};

use super::command;
use super::facts::{Class, Effect, Name, Statement};
use super::functions;
use super::lexer::TokenKind;
use super::parse;
use super::piece::{Found, Piece};

/// Facts of a query or a DML statement.
pub(super) fn analyze(piece: Piece<'_>) -> Found {
    let mut walk = Walk::new();
    let read = parse::parse_tokens(piece.tokens, piece.text).map(|statement| walk.statement(&statement));
    if read.is_none() || walk.unknown {
        return command::opaque(piece);
    }
    let mut statement = walk.out;
    statement.parameters = highest_parameter(piece);
    statement.operators = unusual_operators(piece);
    for list in [&mut statement.reads, &mut statement.writes, &mut statement.functions, &mut statement.casts] {
        list.sort_unstable();
        list.dedup();
    }
    for list in [&mut statement.value_functions, &mut statement.fields] {
        list.sort_unstable();
        list.dedup();
    }
    if statement.writes.iter().any(|name| &*name.name == "pg_settings") {
        // A rule on that view turns an UPDATE into set_config().
        statement.effects.push(Effect::OpaqueSettings);
    }
    Found { statement, literal_sensitive: walk.literal_sensitive }
}

/// Effects of the functions that a text names, where there is no tree to tell calls from columns.
pub(super) fn effects_by_name(piece: Piece<'_>) -> Vec<Effect> {
    let mut effects = Vec::new();
    for name in piece.identifiers_and_bodies() {
        let effect = if &*name == "set_config" { Some(Effect::OpaqueSettings) } else { functions::effect(&name) };
        effects.extend(effect.filter(|effect| !effects.contains(effect)));
    }
    effects
}

fn highest_parameter(piece: Piece<'_>) -> u16 {
    let parameters = piece.tokens.iter().filter(|token| token.kind == TokenKind::Parameter);
    let numbers =
        parameters.filter_map(|token| std::str::from_utf8(token.bytes(piece.text)).ok()?.get(1..)?.parse().ok());
    numbers.max().unwrap_or(0)
}

fn unusual_operators(piece: Piece<'_>) -> Vec<Box<str>> {
    let operators = piece.tokens.iter().filter(|token| token.kind == TokenKind::Operator);
    let mut unusual: Vec<Box<str>> = operators
        .map(|token| String::from_utf8_lossy(token.bytes(piece.text)))
        .filter(|text| !functions::is_usual_operator(text))
        .map(|text| text.as_ref().into())
        .collect();
    unusual.sort_unstable();
    unusual.dedup();
    unusual
}

/// One way through a tree. `unknown` is set, and the result thrown away, at the first node that is not understood.
pub(super) struct Walk {
    pub(super) out: Statement,
    /// Names of the CTEs in scope, innermost last.
    ctes: Vec<Vec<String>>,
    /// Names of a FROM that are tables, sub-queries or functions, over the whole statement.
    sources: usize,
    depth: usize,
    pub(super) literal_sensitive: bool,
    pub(super) unknown: bool,
}

impl Walk {
    fn new() -> Self {
        Self {
            out: Statement::new(Class::Read),
            ctes: Vec::new(),
            sources: 0,
            depth: 0,
            literal_sensitive: false,
            unknown: false,
        }
    }

    /// Gives up unless `known` holds.
    pub(super) fn only(&mut self, known: bool) {
        self.unknown |= !known;
    }

    fn statement(&mut self, statement: &ast::Statement) {
        match statement {
            ast::Statement::Query(query) => self.query(query),
            other => self.dml(other),
        }
        self.out.shape.join = self.sources >= 2;
    }

    pub(super) fn query(&mut self, query: &Query) {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        self.only(for_clause.is_none() && settings.is_none() && format_clause.is_none() && pipe_operators.is_empty());
        self.depth += 1;
        let scopes = self.ctes.len();
        if let Some(with) = with {
            self.with(with);
        }
        self.set_expr(body);
        self.out.locks_rows |= !locks.is_empty();
        if let Some(order_by) = order_by {
            self.only(order_by.interpolate.is_none());
            match &order_by.kind {
                OrderByKind::Expressions(keys) => keys.iter().for_each(|key| self.order_key(key)),
                OrderByKind::All(_) => self.unknown = true,
            }
        }
        match limit_clause {
            None => {}
            Some(LimitClause::LimitOffset { limit, offset, limit_by }) => {
                self.only(limit_by.is_empty());
                self.all(limit);
                self.all(offset.as_ref().map(|offset| &offset.value));
            }
            Some(LimitClause::OffsetCommaLimit { .. }) => self.unknown = true,
        }
        if let Some(fetch) = fetch {
            self.only(!fetch.percent);
            self.all(&fetch.quantity);
        }
        self.ctes.truncate(scopes);
        self.depth -= 1;
    }

    fn with(&mut self, with: &ast::With) {
        self.out.shape.subquery = true;
        let names = || with.cte_tables.iter().map(|cte| cte.alias.name.value.clone());
        // Without RECURSIVE a CTE sees the ones before it; its own name is still the table's.
        self.ctes.push(if with.recursive { names().collect() } else { Vec::new() });
        for (cte, name) in with.cte_tables.iter().zip(names()) {
            self.only(cte.from.is_none());
            self.alias(Some(&cte.alias));
            self.query(&cte.query);
            if let Some(scope) = self.ctes.last_mut() {
                scope.push(name);
            }
        }
    }

    fn set_expr(&mut self, body: &SetExpr) {
        match body {
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query),
            SetExpr::SetOperation { .. } => {
                self.out.shape.set_operation = true;
                // The left spine of a long UNION is walked in a loop: its depth is only bounded by the text's length.
                let mut spine = body;
                while let SetExpr::SetOperation { left, op, set_quantifier, right } = spine {
                    self.only(*op != ast::SetOperator::Minus);
                    self.only(matches!(
                        set_quantifier,
                        ast::SetQuantifier::All | ast::SetQuantifier::Distinct | ast::SetQuantifier::None
                    ));
                    self.set_expr(right);
                    spine = left;
                }
                self.set_expr(spine);
            }
            SetExpr::Values(values) => {
                self.only(!values.explicit_row);
                values.rows.iter().for_each(|row| self.all(&**row));
            }
            SetExpr::Insert(statement)
            | SetExpr::Update(statement)
            | SetExpr::Delete(statement)
            | SetExpr::Merge(statement) => self.dml(statement),
            SetExpr::Table(table) => match &table.table_name {
                Some(name) => {
                    self.read(Name { schema: table.schema_name.as_deref().map(Into::into), name: name.as_str().into() })
                }
                None => self.unknown = true,
            },
        }
    }

    fn select(&mut self, select: &Select) {
        self.only(select.optimizer_hints.is_empty() && select.select_modifiers.is_none() && select.top.is_none());
        self.only(select.exclude.is_none() && select.lateral_views.is_empty() && select.prewhere.is_none());
        self.only(select.connect_by.is_empty() && select.cluster_by.is_empty() && select.distribute_by.is_empty());
        self.only(select.sort_by.is_empty() && select.qualify.is_none() && select.value_table_mode.is_none());
        self.only(matches!(select.flavor, ast::SelectFlavor::Standard));
        match &select.distinct {
            None | Some(ast::Distinct::All) => {}
            Some(ast::Distinct::Distinct) => self.out.shape.distinct = true,
            Some(ast::Distinct::On(keys)) => {
                self.out.shape.distinct = true;
                self.all(keys);
            }
        }
        if let Some(into) = &select.into {
            self.into(into);
        }
        self.select_items(&select.projection);
        select.from.iter().for_each(|from| self.table_with_joins(from));
        self.all(&select.selection);
        if self.depth == 1 {
            self.out.shape.key_equality |= select.selection.as_ref().is_some_and(has_key_equality);
        }
        match &select.group_by {
            GroupByExpr::All(_) => self.unknown = true,
            GroupByExpr::Expressions(keys, modifiers) => {
                self.only(modifiers.is_empty());
                self.out.shape.group_by |= !keys.is_empty();
                self.all(keys);
            }
        }
        self.out.shape.aggregate |= select.having.is_some();
        self.all(&select.having);
        for ast::NamedWindowDefinition(_, window) in &select.named_window {
            match window {
                ast::NamedWindowExpr::NamedWindow(_) => {}
                ast::NamedWindowExpr::WindowSpec(window) => self.window(window),
            }
        }
    }

    fn into(&mut self, into: &ast::SelectInto) {
        self.out.class = Class::Write;
        for target in &into.targets {
            let parts: Vec<&ast::Ident> = match target {
                Expr::Identifier(name) => vec![name],
                Expr::CompoundIdentifier(parts) => parts.iter().collect(),
                _ => Vec::new(),
            };
            let Some((name, schema)) = parts.split_last() else {
                self.unknown = true;
                return;
            };
            let schema: Option<Box<str>> = schema.last().map(|schema| schema.value.as_str().into());
            if into.temporary || schema.as_deref().is_some_and(|schema| schema.starts_with("pg_temp")) {
                self.out.effects.push(Effect::TemporaryObject);
            }
            self.out.writes.push(Name { schema, name: name.value.as_str().into() });
        }
    }

    pub(super) fn select_items(&mut self, items: &[ast::SelectItem]) {
        for item in items {
            match item {
                ast::SelectItem::UnnamedExpr(expr) | ast::SelectItem::ExprWithAlias { expr, .. } => self.expr(expr),
                ast::SelectItem::Wildcard(options) => self.wildcard(options),
                ast::SelectItem::QualifiedWildcard(kind, options) => {
                    self.wildcard(options);
                    if let ast::SelectItemQualifiedWildcardKind::Expr(expr) = kind {
                        self.expr(expr);
                    }
                }
                ast::SelectItem::ExprWithAliases { .. } => self.unknown = true,
            }
        }
    }

    pub(super) fn wildcard(&mut self, options: &ast::WildcardAdditionalOptions) {
        let ast::WildcardAdditionalOptions {
            opt_ilike,
            opt_exclude,
            opt_except,
            opt_replace,
            opt_rename,
            opt_alias,
            ..
        } = options;
        self.only(opt_ilike.is_none() && opt_exclude.is_none() && opt_except.is_none());
        self.only(opt_replace.is_none() && opt_rename.is_none() && opt_alias.is_none());
    }

    pub(super) fn order_key(&mut self, key: &ast::OrderByExpr) {
        self.only(key.with_fill.is_none());
        self.expr(&key.expr);
    }

    /// Notes a relation that is read, unless the name is a CTE's.
    pub(super) fn read(&mut self, name: Name) {
        self.sources += 1;
        let is_cte = name.schema.is_none() && self.ctes.iter().flatten().any(|cte| **cte == *name.name);
        if !is_cte {
            if &*name.name == "pg_prepared_statements" {
                self.out.effects.push(Effect::StatementsShown);
            }
            self.out.reads.push(name);
        }
    }

    /// Counts what stands in a FROM without being a relation.
    pub(super) fn source(&mut self) {
        self.sources += 1;
    }

    /// A relation's name: reserved words there mean that sqlparser took a clause for a name.
    pub(super) fn relation_name(&mut self, name: &ObjectName) -> Option<Name> {
        let (parts, found) = split_name(name)?;
        let misread = parts.iter().any(|part| part.quote_style.is_none() && functions::is_no_table(&part.value));
        self.only(!misread);
        Some(found)
    }

    pub(super) fn alias(&mut self, alias: Option<&ast::TableAlias>) {
        let Some(alias) = alias else { return };
        self.only(alias.at.is_none());
        self.only(alias.name.quote_style.is_some() || !functions::is_no_table(&alias.name.value));
        for data_type in alias.columns.iter().filter_map(|column| column.data_type.as_ref()) {
            self.data_type(data_type);
        }
    }

    pub(super) fn all<'a>(&mut self, expressions: impl IntoIterator<Item = &'a Expr>) {
        expressions.into_iter().for_each(|expr| self.expr(expr));
    }
}

/// A name's identifiers, and the last two of them as PostgreSQL takes them.
pub(super) fn split_name(name: &ObjectName) -> Option<(Vec<&ast::Ident>, Name)> {
    let mut parts = Vec::with_capacity(name.0.len());
    for part in &name.0 {
        match part {
            // sqlparser takes a string literal for a name, which PostgreSQL does not.
            ObjectNamePart::Identifier(ident) if ident.quote_style != Some('\'') => parts.push(ident),
            _ => return None,
        }
    }
    let (last, before) = parts.split_last()?;
    if before.len() > 2 {
        return None;
    }
    let schema = before.last().map(|schema| schema.value.as_str().into());
    let found = Name { schema, name: last.value.as_str().into() };
    Some((parts, found))
}

/// Whether a WHERE pins a column to one value: `column = literal or parameter` among its conjuncts.
pub(super) fn has_key_equality(filter: &Expr) -> bool {
    let mut rest = vec![filter];
    while let Some(expr) = rest.pop() {
        match expr {
            Expr::Nested(inner) => rest.push(inner),
            Expr::BinaryOp { left, op: ast::BinaryOperator::And, right } => rest.extend([&**left, &**right]),
            Expr::BinaryOp { left, op: ast::BinaryOperator::Eq, right } => {
                let sides = (is_column(left), is_constant(right), is_column(right), is_constant(left));
                if matches!(sides, (true, true, ..) | (.., true, true)) {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

fn is_column(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_))
}

pub(super) fn is_constant(expr: &Expr) -> bool {
    match expr {
        Expr::Value(_) | Expr::TypedString(_) | Expr::Interval(_) => true,
        Expr::Nested(expr) | Expr::Cast { expr, .. } => is_constant(expr),
        Expr::UnaryOp { op: ast::UnaryOperator::Minus | ast::UnaryOperator::Plus, expr } => is_constant(expr),
        _ => false,
    }
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
