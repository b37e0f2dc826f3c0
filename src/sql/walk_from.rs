//! The FROM clause and DML's own clauses.

use sqlparser::ast::{self, JoinConstraint, JoinOperator, TableFactor, TableWithJoins};

use super::facts::{Class, Name};
use super::walk::{Walk, has_key_equality};

impl Walk {
    pub(super) fn table_with_joins(&mut self, from: &TableWithJoins) {
        self.table_factor(&from.relation);
        for join in &from.joins {
            self.only(!join.global);
            self.table_factor(&join.relation);
            match &join.join_operator {
                JoinOperator::Join(on)
                | JoinOperator::Inner(on)
                | JoinOperator::Left(on)
                | JoinOperator::LeftOuter(on)
                | JoinOperator::Right(on)
                | JoinOperator::RightOuter(on)
                | JoinOperator::FullOuter(on)
                | JoinOperator::CrossJoin(on) => match on {
                    JoinConstraint::On(expr) => self.expr(expr),
                    JoinConstraint::Using(_) | JoinConstraint::Natural | JoinConstraint::None => {}
                },
                _ => self.unknown = true,
            }
        }
    }

    fn table_factor(&mut self, factor: &TableFactor) {
        match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality: _,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                self.only(with_hints.is_empty() && version.is_none() && partitions.is_empty());
                self.only(json_path.is_none() && index_hints.is_empty());
                self.alias(alias.as_ref());
                self.sample(sample.as_ref());
                match args {
                    Some(args) => {
                        self.only(args.settings.is_none());
                        self.source();
                        self.call(name, &args.args);
                    }
                    None => match self.relation_name(name) {
                        Some(name) => self.read(name),
                        None => self.unknown = true,
                    },
                }
            }
            TableFactor::Derived { lateral: _, subquery, alias, sample } => {
                self.alias(alias.as_ref());
                self.sample(sample.as_ref());
                self.source();
                self.out.shape.subquery = true;
                self.query(subquery);
            }
            TableFactor::Function { lateral: _, name, args, with_ordinality: _, alias } => {
                self.alias(alias.as_ref());
                self.source();
                self.call(name, args);
            }
            TableFactor::UNNEST { alias, array_exprs, with_offset, with_offset_alias, with_ordinality: _ } => {
                self.only(!with_offset && with_offset_alias.is_none());
                self.alias(alias.as_ref());
                self.source();
                self.out.functions.push(Name::bare("unnest"));
                self.all(array_exprs);
            }
            TableFactor::NestedJoin { table_with_joins, alias } => {
                self.alias(alias.as_ref());
                self.table_with_joins(table_with_joins);
            }
            _ => self.unknown = true,
        }
    }

    fn sample(&mut self, sample: Option<&ast::TableSampleKind>) {
        self.out.shape.sampled |= sample.is_some();
    }

    /// INSERT, UPDATE, DELETE or MERGE, also as a CTE.
    pub(super) fn dml(&mut self, statement: &ast::Statement) {
        self.out.class = Class::Write;
        match statement {
            ast::Statement::Insert(insert) => self.insert(insert),
            ast::Statement::Update(update) => self.update(update),
            ast::Statement::Delete(delete) => self.delete(delete),
            ast::Statement::Merge(merge) => self.merge(merge),
            _ => self.unknown = true,
        }
    }

    fn write(&mut self, name: &ast::ObjectName) {
        match self.relation_name(name) {
            Some(name) => self.out.writes.push(name),
            None => self.unknown = true,
        }
    }

    /// The target of an UPDATE, DELETE or MERGE.
    fn target(&mut self, factor: &TableFactor) {
        let TableFactor::Table { name, alias, args: None, sample: None, with_hints, .. } = factor else {
            self.unknown = true;
            return;
        };
        self.only(with_hints.is_empty());
        self.alias(alias.as_ref());
        self.write(name);
    }

    fn insert(&mut self, insert: &ast::Insert) {
        self.only(insert.optimizer_hints.is_empty() && insert.or.is_none() && !insert.ignore && !insert.overwrite);
        self.only(insert.assignments.is_empty() && insert.partitioned.is_none() && insert.after_columns.is_empty());
        self.only(!insert.has_table_keyword && insert.output.is_none() && !insert.replace_into && insert.into);
        self.only(insert.priority.is_none() && insert.insert_alias.is_none() && insert.settings.is_none());
        self.only(insert.format_clause.is_none() && insert.multi_table_insert_type.is_none());
        self.only(insert.multi_table_into_clauses.is_empty() && insert.multi_table_when_clauses.is_empty());
        self.only(insert.multi_table_else_clause.is_none());
        match &insert.table {
            ast::TableObject::TableName(name) => self.write(name),
            _ => self.unknown = true,
        }
        if let Some(source) = &insert.source {
            self.query(source);
        }
        match &insert.on {
            None => {}
            Some(ast::OnInsert::OnConflict(conflict)) => {
                if let ast::OnConflictAction::DoUpdate(update) = &conflict.action {
                    self.assignments(&update.assignments);
                    self.all(&update.selection);
                }
            }
            Some(_) => self.unknown = true,
        }
        self.select_items(insert.returning.as_deref().unwrap_or_default());
    }

    fn update(&mut self, update: &ast::Update) {
        self.only(update.optimizer_hints.is_empty() && update.output.is_none() && update.or.is_none());
        self.only(update.order_by.is_empty() && update.limit.is_none() && update.table.joins.is_empty());
        self.target(&update.table.relation);
        self.assignments(&update.assignments);
        match &update.from {
            None => {}
            Some(ast::UpdateTableFromKind::AfterSet(from)) => from.iter().for_each(|from| self.table_with_joins(from)),
            Some(ast::UpdateTableFromKind::BeforeSet(_)) => self.unknown = true,
        }
        self.filter(update.selection.as_ref());
        self.select_items(update.returning.as_deref().unwrap_or_default());
    }

    fn delete(&mut self, delete: &ast::Delete) {
        self.only(delete.optimizer_hints.is_empty() && delete.tables.is_empty() && delete.output.is_none());
        self.only(delete.order_by.is_empty() && delete.limit.is_none());
        match &delete.from {
            ast::FromTable::WithFromKeyword(from) => match from.as_slice() {
                [only] if only.joins.is_empty() => self.target(&only.relation),
                _ => self.unknown = true,
            },
            ast::FromTable::WithoutKeyword(_) => self.unknown = true,
        }
        delete.using.iter().flatten().for_each(|from| self.table_with_joins(from));
        self.filter(delete.selection.as_ref());
        self.select_items(delete.returning.as_deref().unwrap_or_default());
    }

    fn filter(&mut self, filter: Option<&ast::Expr>) {
        self.all(filter);
        self.out.shape.key_equality |= filter.is_some_and(has_key_equality);
    }

    fn merge(&mut self, merge: &ast::Merge) {
        self.only(merge.optimizer_hints.is_empty());
        self.target(&merge.table);
        self.table_factor(&merge.source);
        self.expr(&merge.on);
        for clause in &merge.clauses {
            self.all(&clause.predicate);
            match &clause.action {
                ast::MergeAction::Insert(insert) => {
                    self.only(insert.insert_predicate.is_none());
                    match &insert.kind {
                        ast::MergeInsertKind::Values(values) => values.rows.iter().for_each(|row| self.all(&**row)),
                        _ => self.unknown = true,
                    }
                }
                ast::MergeAction::Update(update) => {
                    self.only(update.update_predicate.is_none() && update.delete_predicate.is_none());
                    match &update.kind {
                        ast::MergeUpdateKind::Set(assignments) => self.assignments(assignments),
                        ast::MergeUpdateKind::Wildcard => self.unknown = true,
                    }
                }
                ast::MergeAction::Delete { .. } | ast::MergeAction::DoNothing { .. } => {}
            }
        }
        match &merge.output {
            None => {}
            Some(ast::OutputClause::Returning { select_items, .. }) => self.select_items(select_items),
            Some(ast::OutputClause::Output { .. }) => self.unknown = true,
        }
    }

    fn assignments(&mut self, assignments: &[ast::Assignment]) {
        assignments.iter().for_each(|assignment| self.expr(&assignment.value));
    }
}
