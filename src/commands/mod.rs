//! The subcommands, one module each.

pub mod check;
pub mod demo;
pub mod explain;
pub mod import;
pub mod serve;
