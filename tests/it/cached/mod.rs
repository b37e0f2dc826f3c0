//! The result cache end to end: through pgherds that share one Redis and one PostgreSQL, nobody ever sees an old or a foreign row.

mod at_once;
mod conduct;
mod economy;
mod elsewhere;
mod fleet;
mod identity;
mod pipelines;
mod renamed;
mod replicas;
mod shapes;
mod shared;
mod stage;
mod steered;
mod tenants;
mod tiers;
mod traps;
mod visible;
