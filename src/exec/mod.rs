//! Carrying a plan out.

pub mod relay;
