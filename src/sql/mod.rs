//! Reading SQL: lexer, fingerprint, parse tree, facts.

mod analyzer;
mod command;
pub mod facts;
pub mod fingerprint;
mod functions;
mod hint;
pub mod lexer;
pub mod literal;
pub mod maintenance;
mod mentions;
pub mod parameters;
pub mod parse;
mod piece;
mod settings;
mod tokens;
mod transaction;
pub mod types;
mod walk;
mod walk_expr;
mod walk_from;
mod wrapped;

pub use analyzer::{Analyzer, facts_of};
pub use command::explain_route_inner;
pub use piece::statement_ends;
pub use types::name as type_name;
pub use wrapped::{CopiedTable, Explaining, Wrapped, Wrapping, copied_table, wrapped};
