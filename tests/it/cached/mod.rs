//! The result cache end to end: through pgherds that share one Redis and one PostgreSQL, nobody ever sees an old or a foreign row.

mod chains;
mod checker;
mod conduct;
mod economy;
mod elsewhere;
#[cfg(feature = "faults")]
mod faults;
mod fleet;
mod identity;
mod load;
mod reads;
mod renamed;
mod shapes;
mod stage;
mod steered;
mod tenants;
mod traps;
mod visible;
mod world;
mod writes;
