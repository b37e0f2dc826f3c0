//! Carrying a plan out.

pub mod readonly;
pub mod relay;
