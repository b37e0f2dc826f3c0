//! The traps of merging, through the port: every statement is answered as one PostgreSQL answers it, or refused with 0A000.

mod failures;
mod gathered;
mod herd;
mod memory;
mod portals;
mod renewed;
mod routing;
mod rows;
mod sessions;
mod settings;
mod spanning;
mod suspended;
mod transactions;
mod wrapped;
