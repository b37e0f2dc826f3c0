//! Settings: what was typed (`raw`), what was meant (`model`), how one becomes the other (`validate`), and live reload.

pub mod dsn;
mod dsn_uri;
pub mod model;
