//! What the servers know about relations, functions and types.

mod closure;
pub mod load;
pub mod model;
pub mod partitions;
mod policies;
mod queries;
pub mod refresh;
pub mod rights;
