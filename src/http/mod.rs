//! The HTTP side, on an address of its own: `/metrics` for Prometheus, `/healthz/live` and `/healthz/ready` for an orchestrator.

mod readiness;
mod server;

pub use readiness::{Readiness, Report};
pub use server::serve;
