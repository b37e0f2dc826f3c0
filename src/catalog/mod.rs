//! What the servers know about relations, functions and types.

pub mod model;
