//! Reading SQL: lexer, fingerprint, parse tree, facts.

pub mod facts;
pub mod fingerprint;
