//! The HTTP side, on an address of its own: `/metrics` for Prometheus, `/healthz/live` and `/healthz/ready` for an orchestrator, and
//! `/cache/purge` for those who bear the token.

mod purge;
mod readiness;
mod server;

use std::sync::Arc;

pub use readiness::{Readiness, Report};
pub use server::serve;

use crate::config::model::Secret;
use crate::session::context::Database;

/// The running pgherd, as the HTTP side steers it.
pub trait World: Send + Sync {
    /// What a request must bear that changes something; `None` lets nobody.
    fn token(&self) -> Option<Secret>;
    /// The databases there are.
    fn databases(&self) -> Vec<Arc<Database>>;
}
