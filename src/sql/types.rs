//! sqlparser's data types as the names that PostgreSQL knows them by.

use sqlparser::ast::{ArrayElemTypeDef, DataType, ObjectNamePart, TimezoneInfo};

use super::facts::Name;

/// The type's name; an array's is its element's. `None` for a type that PostgreSQL does not have.
pub fn name(data_type: &DataType) -> Option<Name> {
    let built_in = match data_type {
        DataType::Custom(name, _) => return custom(&name.0),
        DataType::Array(ArrayElemTypeDef::SquareBracket(element, _) | ArrayElemTypeDef::Qualified(element, _)) => {
            return self::name(element);
        }
        DataType::Character(_) | DataType::Char(_) => "bpchar",
        DataType::CharacterVarying(_) | DataType::CharVarying(_) | DataType::Varchar(_) => "varchar",
        DataType::Text => "text",
        DataType::Uuid => "uuid",
        DataType::Numeric(_) | DataType::Decimal(_) | DataType::Dec(_) => "numeric",
        DataType::SmallInt(_) | DataType::Int2(_) => "int2",
        DataType::Int(_) | DataType::Integer(_) | DataType::Int4(_) => "int4",
        DataType::BigInt(_) | DataType::Int8(_) => "int8",
        DataType::Float4 | DataType::Real => "float4",
        DataType::Float(_) | DataType::Float8 | DataType::DoublePrecision => "float8",
        DataType::Bool | DataType::Boolean => "bool",
        DataType::Date => "date",
        DataType::Time(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => "time",
        DataType::Time(..) => "timetz",
        DataType::Timestamp(_, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => "timestamp",
        DataType::Timestamp(..) => "timestamptz",
        DataType::Interval { .. } => "interval",
        DataType::JSON => "json",
        DataType::JSONB => "jsonb",
        DataType::Regclass => "regclass",
        DataType::Bytea => "bytea",
        DataType::Bit(_) => "bit",
        DataType::BitVarying(_) | DataType::VarBit(_) => "varbit",
        DataType::GeometricType(kind) => return Some(Name::bare(&kind.to_string().to_ascii_lowercase())),
        DataType::TsVector => "tsvector",
        DataType::TsQuery => "tsquery",
        // Words that are types elsewhere and may be anybody's type in PostgreSQL.
        DataType::Blob(None) => "blob",
        DataType::Clob(None) => "clob",
        DataType::String(None) => "string",
        DataType::Datetime(None) => "datetime",
        _ => return None,
    };
    Some(Name::bare(built_in))
}

/// Whether the type's input function takes `now` or `today` for the moment it runs at.
pub(super) fn is_time(data_type: &DataType) -> bool {
    name(data_type).is_none_or(|name| is_time_name(&name.name))
}

/// The same for a type's name.
pub(super) fn is_time_name(name: &str) -> bool {
    matches!(name, "date" | "time" | "timetz" | "timestamp" | "timestamptz" | "abstime" | "reltime")
        || name.ends_with("range")
}

fn custom(parts: &[ObjectNamePart]) -> Option<Name> {
    let mut names = parts.iter().map(|part| match part {
        ObjectNamePart::Identifier(ident) => Some(Box::<str>::from(ident.value.as_str())),
        ObjectNamePart::Function(_) => None,
    });
    let mut last = names.next()??;
    let mut schema = None;
    for name in names {
        schema = Some(std::mem::replace(&mut last, name?));
    }
    Some(Name { schema, name: last })
}
