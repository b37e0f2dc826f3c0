//! What must hold for any bytes: one function a target, which panics where it does not. The fuzzer runs them for minutes
//! (`tests/fuzz/run`), the end-to-end tests for seconds, with every find as a file under `tests/fuzz/finds`.
#![allow(dead_code, unreachable_pub, reason = "each user takes a part")]

pub mod configuration;
pub mod soup;
pub mod sql;
pub mod wire;

/// A target's name, what it does with an input, and how inputs for it begin.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: &'static [&'static [u8]],
}

pub const ALL: [Target; 9] = [
    Target { name: "frame", run: wire::frame, seeds: wire::FRAMES },
    Target { name: "startup", run: wire::startup, seeds: wire::STARTUPS },
    Target { name: "server", run: wire::server, seeds: wire::ANSWERS },
    Target { name: "scram", run: wire::scram, seeds: wire::SCRAM },
    Target { name: "value", run: wire::value, seeds: wire::VALUES },
    Target { name: "lexer", run: sql::lexer, seeds: sql::TEXTS },
    Target { name: "facts", run: sql::facts, seeds: sql::TEXTS },
    Target { name: "toml", run: configuration::toml, seeds: configuration::TOMLS },
    Target { name: "dsn", run: configuration::dsn, seeds: configuration::DSNS },
];
