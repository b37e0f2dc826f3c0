//! The relay on real servers: what a client sees is what PostgreSQL would show, and what it leaves behind is nobody else's.

mod copies;
mod guards;
mod meaning;
mod pipelines;
pub(super) mod proxy;
mod renewal;
mod route;
mod servers;
mod settings;
mod soak;
mod statements;
mod threads;
