//! The targets, and PostgreSQL's own parser to compare facts with.

#[cfg(feature = "oracle")]
#[path = "oracle/mod.rs"]
pub mod oracle;
#[path = "targets/mod.rs"]
pub mod targets;
