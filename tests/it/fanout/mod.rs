//! Fan-out: for every shape that is supported the merged answer equals one PostgreSQL's; everything else is refused by name.
#![allow(unreachable_pub, reason = "what its own modules share")]

mod cluster;
mod failures;
mod leg;
mod refused;
mod routing;
mod shapes;

use pgherd::sql::Analyzer;
use pgherd::sql::facts::SharedFacts;

fn facts(text: &str) -> SharedFacts {
    Analyzer::new().facts(text.as_bytes(), true)
}
