//! `pgherd demo`: a herd of throw-away servers, a tour through it, and then a port to try.

pub mod servers;
