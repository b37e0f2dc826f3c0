//! What pgherd says about itself: log lines on standard error, and metrics for `/metrics`.

pub mod log;
pub mod metrics;
