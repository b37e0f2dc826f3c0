//! One database's figures on what stands beside its pools: its listener, and replication connections.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{ClientCount, LabelText};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DatabaseLabels {
    database: LabelText,
}

/// Every listener's figures.
#[derive(Debug, Clone, Default)]
pub(super) struct Listeners {
    clients: Family<DatabaseLabels, Gauge>,
    received: Family<DatabaseLabels, Counter>,
    delivered: Family<DatabaseLabels, Counter>,
    lost: Family<DatabaseLabels, Counter>,
    too_slow: Family<DatabaseLabels, Counter>,
    replicating: Family<DatabaseLabels, Gauge>,
}

/// The figures of one database's listener.
#[derive(Debug, Clone, Default)]
pub struct ListenerMetrics {
    /// Clients that listen by it.
    pub clients: Gauge,
    /// Notifications that came.
    pub received: Counter,
    /// Notifications put into clients' queues.
    pub delivered: Counter,
    /// Times that its connection was lost.
    pub lost: Counter,
    /// Clients that did not keep up.
    pub too_slow: Counter,
}

impl Listeners {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("listening_clients", "Clients that listen by the shared listener", self.clients.clone());
        let help = "Notifications that came over the shared listener";
        registry.register("notifications_received", help, self.received.clone());
        let help = "Notifications put into the queues of listening clients";
        registry.register("notifications_delivered", help, self.delivered.clone());
        registry.register("listener_losses", "Times that the shared listener lost its connection", self.lost.clone());
        let help = "Listening clients that fell behind by more than their queue holds";
        registry.register("listening_clients_too_slow", help, self.too_slow.clone());
        registry.register("replication_connections", "Replication connections", self.replicating.clone());
    }

    pub(super) fn replicating(&self, database: &str) -> ClientCount {
        let gauge = self.replicating.get_or_create_owned(&DatabaseLabels { database: database.into() });
        gauge.inc();
        ClientCount(gauge)
    }

    pub(super) fn listener(&self, database: &str) -> ListenerMetrics {
        let labels = DatabaseLabels { database: database.into() };
        ListenerMetrics {
            clients: self.clients.get_or_create_owned(&labels),
            received: self.received.get_or_create_owned(&labels),
            delivered: self.delivered.get_or_create_owned(&labels),
            lost: self.lost.get_or_create_owned(&labels),
            too_slow: self.too_slow.get_or_create_owned(&labels),
        }
    }
}
