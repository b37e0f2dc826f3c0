//! pgherd: one PostgreSQL port in front of a herd of servers. This file is the map of the house.
//!
//! A statement's way: `net` -> `session` (handshake, then one turn a message) -> `sql` (facts) -> `plan` (a decision, as data)
//! -> `exec` (relay, cached, fan-out, local) -> `wire` -> the client's socket. `app` wires the parts together.

pub mod admin;
pub mod app;
pub mod auth;
pub mod backend;
pub mod cache;
pub mod catalog;
pub mod cli;
pub mod commands;
pub mod config;
pub mod error;
pub mod exec;
pub mod http;
pub mod limits;
pub mod net;
pub mod plan;
pub mod session;
pub mod shutdown;
pub mod sql;
pub mod telemetry;
pub mod wire;
