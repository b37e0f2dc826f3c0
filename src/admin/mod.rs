//! The console: the virtual database `pgherd` (and `pgbouncer`), in which operators look at a running pgherd and steer it.

mod cache;
mod command;
mod connections;
mod console;
mod control;
mod limits;
mod settings;
mod show;
mod stats;
mod value;

use std::sync::Arc;

use async_trait::async_trait;

pub use command::Shutdown;
pub use console::serve;
pub use stats::{Averages, PERIOD};

use crate::backend::ledger::Standing;
use crate::config::model::Config;
use crate::error::Error;
use crate::session::clients::Clients;
use crate::session::context::Database;

/// The database's own name in what the console shows.
const CONSOLE: &str = "pgherd";

/// The running pgherd, as a console sees and steers it.
#[async_trait]
pub trait World: Send + Sync {
    /// The settings in force.
    fn config(&self) -> Arc<Config>;
    /// The databases, in order of their names.
    fn databases(&self) -> Vec<Arc<Database>>;
    /// All clients but consoles.
    fn clients(&self) -> Arc<Clients>;
    /// Bounds on server connections that several pools share.
    fn standings(&self) -> Vec<Standing>;
    /// How many consoles there are.
    fn consoles(&self) -> usize;
    /// The averages of the last period.
    fn averages(&self) -> &Averages;
    /// Reads the configuration file again and applies it.
    ///
    /// # Errors
    /// There is none, or it is wrong; nothing has changed then.
    async fn reload(&self) -> Result<(), Error>;
    /// Lets pgherd end, in a moment.
    fn shut_down(&self, how: Shutdown);
}
