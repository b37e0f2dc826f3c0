//! The names that PostgreSQL gives to columns of a select list without an alias (`FigureColname` of its `parse_target.c`).

use sqlparser::ast::{
    AccessExpr, BinaryOperator, CastKind, DataType, ExactNumberInfo, Expr, Query, SelectItem, SetExpr, TrimWhereField,
    Value as Literal,
};

use crate::sql::types;

/// What a column without an alias is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Label {
    /// That name, however the expression is cast.
    Strong(Box<str>),
    /// That name, unless something around it has a better one.
    Weak(Box<str>),
    /// It has none: `?column?`.
    Nameless,
    /// It has none from version 15 on, and is called `bool` before.
    Truth,
    /// One of those, from version to version.
    Either(&'static [&'static str]),
    /// Nobody here knows.
    Open,
}

/// What PostgreSQL calls a column that has no name.
const NAMELESS: &str = "?column?";
/// What it calls a plain `true` or `false`.
const TRUTHS: [&str; 2] = ["bool", NAMELESS];

impl Label {
    /// Of an expression.
    pub(super) fn of(expr: &Expr) -> Self {
        match expr {
            Expr::Identifier(ident) => strong(&ident.value),
            Expr::CompoundIdentifier(idents) => idents.last().map_or(Self::Open, |ident| strong(&ident.value)),
            Expr::Function(function) => {
                let name = function.name.0.last().and_then(|part| part.as_ident());
                name.map_or(Self::Open, |ident| strong(&ident.value))
            }
            Expr::CompoundFieldAccess { root, access_chain } => accessed(root, access_chain),
            Expr::Nested(inner) | Expr::Collate { expr: inner, .. } => Self::of(inner),
            Expr::Cast { kind: CastKind::Cast | CastKind::DoubleColon, expr, data_type, .. } => {
                Self::of(expr).or(|| type_label(data_type))
            }
            Expr::TypedString(typed) => type_label(&typed.data_type),
            Expr::Interval(_) => Self::Weak("interval".into()),
            Expr::Case { else_result, .. } => {
                let inner = else_result.as_ref().map_or(Self::Nameless, |expr| Self::of(expr));
                inner.or(|| Self::Weak("case".into()))
            }
            Expr::Subquery(query) => of_query(query),
            Expr::Value(value) => match &value.value {
                Literal::Boolean(_) => Self::Truth,
                Literal::Number(..)
                | Literal::SingleQuotedString(_)
                | Literal::EscapedStringLiteral(_)
                | Literal::DollarQuotedString(_)
                | Literal::Null
                | Literal::Placeholder(_) => Self::Nameless,
                _ => Self::Open,
            },
            expr => grammatical(expr),
        }
    }

    /// What stands around it has that one, if its own is none or a weak one.
    fn or(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Weak(_) | Self::Nameless | Self::Truth => other(),
            Self::Strong(_) | Self::Either(_) | Self::Open => self,
        }
    }

    /// The name, where it is certain and there is one.
    pub(super) fn name(self) -> Option<Box<str>> {
        match self {
            Self::Strong(name) | Self::Weak(name) => Some(name),
            Self::Nameless | Self::Truth | Self::Either(_) | Self::Open => None,
        }
    }

    /// Whether it could be that name, without being known to be.
    pub(super) fn may_be(&self, name: &str) -> bool {
        match self {
            Self::Strong(_) | Self::Weak(_) => false,
            Self::Nameless => name == NAMELESS,
            Self::Truth => TRUTHS.contains(&name),
            Self::Either(names) => names.contains(&name),
            Self::Open => true,
        }
    }
}

fn strong(name: &str) -> Label {
    Label::Strong(name.into())
}

/// What the grammar makes a function or the like of, and what has no name at all.
fn grammatical(expr: &Expr) -> Label {
    match expr {
        Expr::Exists { negated: false, .. } => strong("exists"),
        Expr::Array(_) => strong("array"),
        Expr::Tuple(_) => strong("row"),
        // Before version 14 it is another function.
        Expr::Extract { .. } => Label::Either(&["extract", "date_part"]),
        Expr::AtTimeZone { .. } => strong("timezone"),
        Expr::Position { .. } => strong("position"),
        Expr::Substring { shorthand, .. } => strong(if *shorthand { "substr" } else { "substring" }),
        Expr::Overlay { .. } => strong("overlay"),
        Expr::Ceil { .. } => strong("ceil"),
        Expr::Floor { .. } => strong("floor"),
        Expr::Trim { trim_where, .. } => strong(match trim_where {
            None | Some(TrimWhereField::Both) => "btrim",
            Some(TrimWhereField::Leading) => "ltrim",
            Some(TrimWhereField::Trailing) => "rtrim",
        }),
        Expr::BinaryOp { op: BinaryOperator::Overlaps, .. } => strong("overlaps"),
        Expr::BinaryOp { .. }
        | Expr::UnaryOp { .. }
        | Expr::Exists { negated: true, .. }
        | Expr::AnyOp { .. }
        | Expr::AllOp { .. }
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
        | Expr::SimilarTo { .. } => Label::Nameless,
        _ => Label::Open,
    }
}

/// The last field that is named on the way.
fn accessed(root: &Expr, chain: &[AccessExpr]) -> Label {
    for access in chain.iter().rev() {
        match access {
            AccessExpr::Dot(Expr::Identifier(field)) => return strong(&field.value),
            AccessExpr::Dot(_) => return Label::Open,
            AccessExpr::Subscript(_) => {}
        }
    }
    Label::of(root)
}

/// A sub-query's only column's.
fn of_query(query: &Query) -> Label {
    let SetExpr::Select(select) = &*query.body else { return Label::Open };
    match select.projection.first() {
        Some(SelectItem::ExprWithAlias { alias, .. }) => strong(&alias.value),
        Some(SelectItem::UnnamedExpr(expr)) => match Label::of(expr) {
            Label::Weak(name) => Label::Strong(name),
            // A name like any other, once a sub-query's column has it.
            Label::Nameless => strong(NAMELESS),
            Label::Truth => Label::Either(&TRUTHS),
            label => label,
        },
        _ => Label::Open,
    }
}

/// The last part of a type's name, as the grammar stores it.
fn type_label(data_type: &DataType) -> Label {
    let short = match data_type {
        // Up to 24 bits are a real.
        DataType::Float(ExactNumberInfo::Precision(bits)) if *bits <= 24 => return Label::Weak("float4".into()),
        data_type => types::name(data_type),
    };
    short.map_or(Label::Open, |name| Label::Weak(name.name))
}

#[cfg(test)]
mod tests {
    use sqlparser::ast::Statement;

    use super::*;
    use crate::sql::parse;

    fn label(expression: &str) -> Label {
        let tree = parse::parse(format!("select {expression}").as_bytes(), true).expect(expression);
        let Statement::Query(query) = tree else { panic!("{expression}") };
        let SetExpr::Select(select) = *query.body else { panic!("{expression}") };
        match &select.projection[0] {
            SelectItem::UnnamedExpr(expr) => Label::of(expr),
            item => panic!("{item:?}"),
        }
    }

    #[test]
    fn casts_are_called_after_their_types_unless_something_in_them_has_a_name() {
        for (expression, name) in [
            ("(a || b)::uuid", "uuid"),
            ("'x'::name", "name"),
            ("cast(1 as double precision)", "float8"),
            ("1::float", "float8"),
            ("1::float(24)", "float4"),
            ("1::real", "float4"),
            ("1::int", "int4"),
            ("1::decimal(5, 2)", "numeric"),
            ("1::char", "bpchar"),
            ("1::\"char\"", "char"),
            ("1::character varying(3)", "varchar"),
            ("'1'::timestamp with time zone", "timestamptz"),
            ("'1'::time", "time"),
            ("1::oid", "oid"),
            ("(a + 1)::money", "money"),
            ("(a || b)::inet", "inet"),
            ("(a || b)::bytea", "bytea"),
            ("(a || b)::app.status", "status"),
            ("(a + 1)::int[]", "int4"),
            ("date '2024-01-01'", "date"),
            ("interval '1 day'", "interval"),
            ("true::int", "int4"),
            ("case when a then 1 else true end", "case"),
            ("case when a then 1::int end", "case"),
            ("case when a then 1 else 1::int end", "case"),
        ] {
            assert_eq!(label(expression), Label::Weak(name.into()), "{expression}");
        }
        for (expression, name) in [
            ("a::uuid", "a"),
            ("(t.a)::text::uuid", "a"),
            ("lower(a)::uuid", "lower"),
            ("(c).s::text", "s"),
            ("(l[1])::text", "l"),
            ("case when a then 1 else b end::int", "b"),
            ("(select 1::int)", "int4"),
            ("(select 1 + 1)::int", "?column?"),
            ("(select 1 as x)", "x"),
            ("coalesce(a, b)::int", "coalesce"),
            ("array[1]::text", "array"),
            ("exists (select 1)", "exists"),
            ("substr(a, 1)", "substr"),
            ("substring(a from 1)", "substring"),
            ("trim(leading 'x' from a)", "ltrim"),
            ("a at time zone 'UTC'", "timezone"),
        ] {
            assert_eq!(label(expression), Label::Strong(name.into()), "{expression}");
        }
        for expression in ["a || b", "1", "'x'", "-a", "a is null", "not exists (select 1)", "a in (1)", "$1"] {
            assert_eq!(label(expression), Label::Nameless, "{expression}");
        }
    }

    #[test]
    fn what_has_no_certain_name_may_be_any() {
        assert!(label("(select * from t)").may_be("anything"));
        assert!(label("extract(year from a)").may_be("date_part"));
        assert!(!label("extract(year from a)").may_be("a"));
        assert!(label("true").may_be("bool") && label("(select true)").may_be("?column?"));
        assert!(!label("a || b").may_be("a"));
        assert!(!label("a::int").may_be("int4"));
    }
}
