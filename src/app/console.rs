//! What the console, and the HTTP side, may do with the house.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::House;
use crate::admin::{self, Averages, Shutdown, World};
use crate::backend::ledger::Standing;
use crate::config::{self, model::Config, model::Secret};
use crate::error::{Error, ErrorKind};
use crate::http;
use crate::session::clients::Clients;
use crate::session::context::Database;
use crate::session::handshake::Operator;
use crate::wire::sqlstate::SqlState;

/// How long a console may go on talking once pgherd drains: long enough to hear that it does.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// How long clients may take to go when everything ends at once.
pub(super) const AT_ONCE: Duration = Duration::from_millis(200);
/// How often it is looked whether the last client has left.
const LOOK: Duration = Duration::from_millis(50);

/// What consoles share.
#[derive(Default)]
pub(super) struct Controls {
    /// Where the configuration came from, if it came from a file.
    pub(super) path: OnceLock<PathBuf>,
    /// One configuration is applied at a time.
    pub(super) applying: Mutex<()>,
    /// No new clients, though those that are there stay.
    pub(super) closing: CancellationToken,
    averages: Averages,
    consoles: AtomicUsize,
    shutdown: watch::Sender<Option<Shutdown>>,
}

/// Counts a console for as long as it is there.
struct Counted<'h>(&'h AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The house, for a console.
struct View(Arc<House>);

#[async_trait]
impl World for View {
    fn config(&self) -> Arc<Config> {
        self.0.config.load_full()
    }

    fn databases(&self) -> Vec<Arc<Database>> {
        let mut all = self.0.databases.all();
        all.sort_by(|a, b| a.config.name.cmp(&b.config.name));
        all
    }

    fn clients(&self) -> Arc<Clients> {
        Arc::clone(&self.0.shared.clients)
    }

    fn standings(&self) -> Vec<Standing> {
        self.0.shared.ledger.standings()
    }

    fn consoles(&self) -> usize {
        self.0.console.consoles.load(Ordering::Relaxed)
    }

    fn averages(&self) -> &Averages {
        &self.0.console.averages
    }

    async fn reload(&self) -> Result<(), Error> {
        let refused = |message: String| Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message);
        let Some(path) = self.0.console.path.get() else {
            return Err(refused("this pgherd was not started from a file".into()));
        };
        let loaded = config::load_with_warnings(path).map_err(|faults| {
            self.0.metrics.reload(false);
            refused("the configuration stays as it is: the file has faults".into()).detail(faults.to_string())
        })?;
        let config = Arc::new(loaded.config);
        self.0.take_over(&config);
        if !Arc::ptr_eq(&self.0.config.load_full(), &config) {
            return Err(refused("the configuration stays as it is".into()).hint("See pgherd's log."));
        }
        self.0.metrics.reload(true);
        Ok(())
    }

    fn shut_down(&self, how: Shutdown) {
        self.0.console.shutdown.send_replace(Some(how));
    }
}

impl http::World for View {
    fn token(&self) -> Option<Secret> {
        self.0.config.load().admin.http_token.clone()
    }

    fn databases(&self) -> Vec<Arc<Database>> {
        World::databases(self)
    }
}

impl House {
    /// What the HTTP side may do with the house.
    pub(super) fn view(self: &Arc<Self>) -> Arc<dyn http::World> {
        Arc::new(View(Arc::clone(self)))
    }

    /// Serves a console until its client leaves or pgherd ends.
    pub(super) async fn open_console(self: &Arc<Self>, operator: Operator) {
        self.console.consoles.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.console.consoles);
        let Operator { stream, inbuf, outbuf, user, is_admin } = operator;
        tracing::info!(user = user.name, is_admin, "console opened");
        let view = View(Arc::clone(self));
        let ending = async {
            self.drain.begun().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        tokio::select! {
            served = admin::serve(&view, is_admin, stream, inbuf, outbuf) => if let Err(error) = served {
                tracing::info!(%error, "console ended");
            },
            () = ending => {}
        }
    }

    /// Keeps the averages that SHOW STATS shows.
    pub(super) async fn keep_averages(self: Arc<Self>) {
        let mut period = tokio::time::interval(admin::PERIOD);
        let view = View(Arc::clone(&self));
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                _ = period.tick() => self.console.averages.turn(&view),
            }
        }
    }
}

impl super::Running {
    /// Waits until a console asks for the end.
    pub async fn told_to_shut_down(&self) -> Shutdown {
        let mut asked = self.house.console.shutdown.subscribe();
        match asked.wait_for(Option::is_some).await {
            Ok(how) => how.unwrap_or(Shutdown::Now),
            // The sender lives as long as the house.
            Err(_) => std::future::pending().await,
        }
    }

    /// Ends as a console asked for; `patience` is for transactions that are to end.
    pub async fn shut_down(self, how: Shutdown, patience: Duration) {
        self.shut_clients_out(how, patience).await;
        self.finish().await;
    }

    pub(super) async fn shut_clients_out(&self, how: Shutdown, patience: Duration) {
        match how {
            Shutdown::Now => return self.send_clients_away(AT_ONCE).await,
            Shutdown::WaitForServers => {}
            Shutdown::WaitForClients => {
                self.house.handover.withdraw();
                self.house.console.closing.cancel();
                self.house.readiness.set_draining();
                while self.house.shared.clients.count() > 0 {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
        self.send_clients_away(patience).await;
    }
}
