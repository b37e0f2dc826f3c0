//! End-to-end tests on real servers, one binary: each module tells its own stories.

#[path = "../harness/mod.rs"]
mod harness;

mod instruments;
mod servers;
