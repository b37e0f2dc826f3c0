//! End-to-end tests on real servers, one binary: each module tells its own stories.

#[path = "../harness/mod.rs"]
mod harness;

mod admin;
mod answers;
mod cached;
mod catalog;
mod check;
mod check_wal;
mod command_line;
mod connect;
mod copy;
mod demo;
mod differential;
mod drivers;
mod dump;
mod explain;
mod fanout;
mod fanout_hash;
mod fuzzing;
mod instruments;
mod key_lists;
mod layouts;
mod leaks;
mod listen;
mod operation;
mod partitions;
mod pgbench;
mod pins;
mod proof;
mod psql;
mod reading;
mod relay;
mod replay;
mod replication;
mod row_triggers;
mod servers;
mod tenants;
mod tpch;
mod transcripts;
mod traps;
mod views;
mod writes;
