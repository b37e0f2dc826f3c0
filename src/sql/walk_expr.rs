//! Expressions: functions, casts, columns that matter, and what a call does to the session.

use sqlparser::ast::{
    self, AccessExpr, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentClause,
    FunctionArguments, ObjectName, Subscript, Value,
};

use super::facts::{Effect, Name, Operand};
use super::functions;
use super::types;
use super::walk::{Walk, is_constant, split_name};

impl Walk {
    pub(super) fn expr(&mut self, expr: &Expr) {
        // The left spine of `a + b + c ...` is walked in a loop: its depth is only bounded by the text's length.
        let mut spine = expr;
        while let Expr::BinaryOp { left, op, right } = spine {
            self.only(is_postgresql(op));
            self.expr(right);
            spine = left;
        }
        self.operand(spine);
    }

    fn operand(&mut self, expr: &Expr) {
        match expr {
            Expr::Identifier(name) => self.column(name),
            Expr::CompoundIdentifier(parts) => self.qualified_column(parts),
            Expr::CompoundFieldAccess { root, access_chain } => self.access(root, access_chain),
            Expr::Value(value) => self.value(&value.value),
            Expr::IsFalse(e) | Expr::IsNotFalse(e) | Expr::IsTrue(e) | Expr::IsNotTrue(e) | Expr::IsNull(e) => {
                self.expr(e);
            }
            Expr::IsNotNull(e) | Expr::IsUnknown(e) | Expr::IsNotUnknown(e) | Expr::Nested(e) => self.expr(e),
            Expr::IsDistinctFrom(a, b) | Expr::IsNotDistinctFrom(a, b) => self.all([&**a, &**b]),
            Expr::IsJson { expr, .. } => self.expr(expr),
            Expr::IsNormalized { expr, .. } => self.calls("is_normalized", [&**expr]),
            Expr::InList { expr, list, .. } => {
                self.expr(expr);
                self.all(list);
            }
            Expr::InSubquery { expr, subquery, .. } => {
                self.expr(expr);
                self.subquery(subquery);
            }
            Expr::Between { expr, low, high, .. } => self.all([&**expr, &**low, &**high]),
            Expr::Like { any, expr, pattern, escape_char, .. }
            | Expr::ILike { any, expr, pattern, escape_char, .. } => {
                self.only(!any);
                self.all([&**expr, &**pattern]);
                self.all(escape_char.as_deref());
            }
            Expr::SimilarTo { expr, pattern, escape_char, .. } => {
                self.all([&**expr, &**pattern]);
                self.all(escape_char.as_deref());
            }
            Expr::AnyOp { left, compare_op, right, .. } | Expr::AllOp { left, compare_op, right } => {
                self.only(is_postgresql(compare_op));
                self.all([&**left, &**right]);
            }
            Expr::UnaryOp { op: _, expr } => self.expr(expr),
            Expr::Cast { kind, expr, data_type, format } => {
                self.only(format.is_none() && matches!(kind, ast::CastKind::Cast | ast::CastKind::DoubleColon));
                self.cast(expr, data_type);
            }
            Expr::Exists { subquery, .. } | Expr::Subquery(subquery) => self.subquery(subquery),
            Expr::Function(function) => self.function(function),
            Expr::TypedString(typed) => {
                self.only(!typed.uses_odbc_syntax);
                self.data_type(&typed.data_type);
            }
            Expr::Interval(interval) => self.expr(&interval.value),
            Expr::GroupingSets(sets) | Expr::Cube(sets) | Expr::Rollup(sets) => {
                sets.iter().for_each(|set| self.all(set))
            }
            Expr::Tuple(items) => self.all(items),
            Expr::Array(array) => self.all(&array.elem),
            Expr::Collate { expr, collation } => {
                self.only(split_name(collation).is_some());
                self.expr(expr);
            }
            Expr::Case { operand, conditions, else_result, .. } => {
                self.all(operand.as_deref());
                conditions.iter().for_each(|when| self.all([&when.condition, &when.result]));
                self.all(else_result.as_deref());
            }
            Expr::Wildcard(_) | Expr::QualifiedWildcard(..) => {}
            other => self.keyword_call(other),
        }
    }

    /// Functions that the grammar calls with words between their arguments.
    fn keyword_call(&mut self, expr: &Expr) {
        match expr {
            Expr::AtTimeZone { timestamp, time_zone } => self.calls("timezone", [&**timestamp, &**time_zone]),
            Expr::Extract { syntax, expr, field: _ } => {
                self.only(matches!(syntax, ast::ExtractSyntax::From));
                self.calls("extract", [&**expr]);
            }
            Expr::Ceil { expr, field } => {
                self.only(matches!(field, ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime)));
                self.calls("ceil", [&**expr]);
            }
            Expr::Floor { expr, field } => {
                self.only(matches!(field, ast::CeilFloorKind::DateTimeField(ast::DateTimeField::NoDateTime)));
                self.calls("floor", [&**expr]);
            }
            Expr::Position { expr, r#in } => self.calls("position", [&**expr, &**r#in]),
            Expr::Substring { expr, substring_from, substring_for, shorthand, special: _ } => {
                self.calls(if *shorthand { "substr" } else { "substring" }, [&**expr]);
                self.all(substring_from.as_deref());
                self.all(substring_for.as_deref());
            }
            Expr::Trim { trim_what, expr, trim_characters, trim_where: _ } => {
                for name in ["btrim", "ltrim"] {
                    self.out.functions.push(Name::bare(name));
                }
                self.calls("rtrim", [&**expr]);
                self.all(trim_what.as_deref());
                self.all(trim_characters.iter().flatten());
            }
            Expr::Overlay { expr, overlay_what, overlay_from, overlay_for } => {
                self.calls("overlay", [&**expr, &**overlay_what, &**overlay_from]);
                self.all(overlay_for.as_deref());
            }
            _ => self.unknown = true,
        }
    }

    fn calls<'a>(&mut self, name: &str, arguments: impl IntoIterator<Item = &'a Expr>) {
        self.out.functions.push(Name::bare(name));
        self.all(arguments);
    }

    fn subquery(&mut self, query: &ast::Query) {
        self.out.shape.subquery = true;
        self.query(query);
    }

    fn column(&mut self, name: &ast::Ident) {
        if name.quote_style.is_none() {
            if functions::is_value_function(&name.value) {
                self.out.value_functions.push(name.value.as_str().into());
                return;
            }
            self.only(!functions::is_reserved(&name.value));
        }
        self.out.system_columns |= functions::is_system_column(&name.value);
    }

    fn qualified_column(&mut self, parts: &[ast::Ident]) {
        let Some(last) = parts.last() else { return };
        self.out.system_columns |= functions::is_system_column(&last.value);
        self.out.fields.push(last.value.as_str().into());
    }

    fn access(&mut self, root: &Expr, chain: &[AccessExpr]) {
        self.expr(root);
        for access in chain {
            match access {
                AccessExpr::Dot(Expr::Identifier(field)) => self.qualified_column(std::slice::from_ref(field)),
                AccessExpr::Dot(_) => self.unknown = true,
                AccessExpr::Subscript(Subscript::Index { index }) => self.expr(index),
                AccessExpr::Subscript(Subscript::Slice { lower_bound, upper_bound, stride }) => {
                    self.only(stride.is_none());
                    self.all(lower_bound);
                    self.all(upper_bound);
                }
            }
        }
    }

    fn value(&mut self, value: &Value) {
        self.only(matches!(
            value,
            Value::Number(..)
                | Value::SingleQuotedString(_)
                | Value::SingleQuotedByteStringLiteral(_)
                | Value::HexStringLiteral(_)
                | Value::Boolean(_)
                | Value::Null
                | Value::Placeholder(_)
        ));
    }

    fn cast(&mut self, expr: &Expr, data_type: &DataType) {
        self.expr(expr);
        self.data_type(data_type);
        if types::is_time(data_type) {
            self.time_operand(expr);
        }
    }

    /// Notes what is turned into a date or time, where it could be a text that says `now`.
    fn time_operand(&mut self, expr: &Expr) {
        let mut rest = vec![expr];
        while let Some(expr) = rest.pop() {
            let operand = match expr {
                _ if is_constant(expr) => continue,
                Expr::Nested(inner) => {
                    rest.push(inner);
                    continue;
                }
                Expr::BinaryOp { left, op: ast::BinaryOperator::Plus | ast::BinaryOperator::Minus, right } => {
                    rest.extend([&**left, &**right]);
                    continue;
                }
                Expr::Cast { data_type, .. } if types::is_time(data_type) => continue,
                Expr::AtTimeZone { .. } | Expr::Interval(_) => continue,
                Expr::Identifier(name) => Operand::Column(name.value.as_str().into()),
                Expr::CompoundIdentifier(parts) => match parts.last() {
                    Some(name) => Operand::Column(name.value.as_str().into()),
                    None => Operand::Other,
                },
                Expr::Function(function) => match split_name(&function.name) {
                    Some((_, name)) => Operand::Function(name),
                    None => Operand::Other,
                },
                _ => Operand::Other,
            };
            if !self.out.time_casts.contains(&operand) {
                self.out.time_casts.push(operand);
            }
        }
    }

    pub(super) fn data_type(&mut self, data_type: &DataType) {
        match types::name(data_type) {
            Some(name) => self.out.casts.push(name),
            None => self.unknown = true,
        }
    }

    /// A function in FROM.
    pub(super) fn call(&mut self, name: &ObjectName, arguments: &[FunctionArg]) {
        let Some((_, name)) = split_name(name) else {
            self.unknown = true;
            return;
        };
        self.effect(&name, arguments);
        self.out.functions.push(name);
        self.arguments(arguments);
    }

    fn function(&mut self, function: &Function) {
        self.only(!function.uses_odbc_syntax && matches!(function.parameters, FunctionArguments::None));
        let Some((parts, name)) = split_name(&function.name) else {
            self.unknown = true;
            return;
        };
        let unquoted = parts.iter().all(|part| part.quote_style.is_none());
        let keyword = unquoted && name.schema.is_none();
        let mut aggregate = functions::is_aggregate(&name.name) || function.filter.is_some();
        aggregate |= !function.within_group.is_empty();
        let value_function = keyword && functions::is_value_function(&name.name);
        match &function.args {
            FunctionArguments::None => self.only(value_function),
            // ARRAY(SELECT ...), and calls with a bare sub-query, which PostgreSQL has for no function.
            FunctionArguments::Subquery(query) => {
                self.only(keyword && &*name.name == "array");
                self.subquery(query);
            }
            FunctionArguments::List(list) => {
                aggregate |= list.duplicate_treatment.is_some();
                // `date(x)` is `x::date`, also where x is a text.
                if let [FunctionArg::Unnamed(FunctionArgExpr::Expr(only))] = list.args.as_slice()
                    && types::is_time_name(&name.name)
                {
                    self.time_operand(only);
                }
                self.effect(&name, &list.args);
                self.arguments(&list.args);
                list.clauses.iter().for_each(|clause| self.clause(clause));
            }
        }
        if value_function {
            self.out.value_functions.push(name.name);
        } else if !(keyword && &*name.name == "array") {
            self.out.functions.push(name);
        }
        function.within_group.iter().for_each(|key| self.order_key(key));
        self.all(function.filter.as_deref());
        match &function.over {
            None => self.out.shape.aggregate |= aggregate,
            Some(window) => {
                self.out.shape.window = true;
                if let ast::WindowType::WindowSpec(window) = window {
                    self.window(window);
                }
            }
        }
    }

    fn arguments(&mut self, arguments: &[FunctionArg]) {
        for argument in arguments {
            let value = match argument {
                FunctionArg::Named { arg, .. } | FunctionArg::Unnamed(arg) => arg,
                FunctionArg::ExprNamed { name, arg, .. } => {
                    self.expr(name);
                    arg
                }
            };
            match value {
                FunctionArgExpr::Expr(expr) => self.expr(expr),
                FunctionArgExpr::QualifiedWildcard(_) | FunctionArgExpr::Wildcard => {}
                FunctionArgExpr::WildcardWithOptions(options) => self.wildcard(options),
            }
        }
    }

    fn clause(&mut self, clause: &FunctionArgumentClause) {
        match clause {
            FunctionArgumentClause::OrderBy(keys) => keys.iter().for_each(|key| self.order_key(key)),
            FunctionArgumentClause::JsonNullClause(_) => {}
            FunctionArgumentClause::JsonReturningClause(returning) => self.data_type(&returning.data_type),
            _ => self.unknown = true,
        }
    }

    pub(super) fn window(&mut self, window: &ast::WindowSpec) {
        self.out.shape.window = true;
        self.all(&window.partition_by);
        window.order_by.iter().for_each(|key| self.order_key(key));
        let Some(frame) = &window.window_frame else { return };
        for bound in [Some(&frame.start_bound), frame.end_bound.as_ref()].into_iter().flatten() {
            if let ast::WindowFrameBound::Preceding(Some(expr)) | ast::WindowFrameBound::Following(Some(expr)) = bound {
                self.expr(expr);
            }
        }
    }

    /// What a call does to the session, where it is PostgreSQL's own function that is called.
    fn effect(&mut self, name: &Name, arguments: &[FunctionArg]) {
        let effect = match &*name.name {
            "set_config" => Some(self.set_config(arguments)),
            name => functions::effect(name),
        };
        if let Some(effect) = effect.filter(|effect| !self.out.effects.contains(effect)) {
            self.out.effects.push(effect);
        }
    }

    /// `set_config('name', value, is_local)` is read where name and is_local are constants, and the facts hold for this text.
    fn set_config(&mut self, arguments: &[FunctionArg]) -> Effect {
        let constant = |at: usize| match arguments.get(at) {
            Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))) => Some(&value.value),
            _ => None,
        };
        self.literal_sensitive = true;
        match (constant(0), constant(2), arguments.len()) {
            (Some(Value::SingleQuotedString(name)), Some(Value::Boolean(local)), 3) => {
                let name = name.to_ascii_lowercase().into();
                if *local { Effect::SetLocal(name) } else { Effect::Set(name) }
            }
            _ => Effect::OpaqueSettings,
        }
    }
}

/// Operators of other dialects that sqlparser might have read into the text.
fn is_postgresql(op: &ast::BinaryOperator) -> bool {
    use ast::BinaryOperator as Op;
    !matches!(
        op,
        Op::Xor
            | Op::DuckIntegerDivide
            | Op::MyIntegerDivide
            | Op::Match
            | Op::Regexp
            | Op::Glob
            | Op::Assignment
            | Op::Spaceship
    )
}
