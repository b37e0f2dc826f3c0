//! How many clients there may be: of all, of an address, of a user, of a database, and in a minute.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use foldhash::HashMap;
use parking_lot::Mutex;

use crate::config::model::{Config, Database, User};
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// Addresses whose rate is remembered before the memory is swept of those that are quiet.
const RATED_ADDRESSES: usize = 10_000;

/// Counts clients. The limits are those of the configuration at the moment; the counts outlive a reload.
pub(super) struct Door {
    counts: Mutex<Counts>,
    rate: ArcSwapOption<Rate>,
}

#[derive(Default)]
struct Counts {
    clients: usize,
    /// Those of the reserve are not among `clients`.
    in_reserve: usize,
    by_address: HashMap<IpAddr, usize>,
    by_user: HashMap<String, usize>,
    by_database: HashMap<String, usize>,
}

struct Rate {
    per_minute: NonZeroU32,
    limiter: governor::DefaultKeyedRateLimiter<IpAddr>,
}

/// Why a client does not come in.
pub(super) enum Shut {
    /// There is no place; one of those who may use the reserve may still come in.
    Full(Error),
    /// There is no place for that client.
    Refused(Error),
}

fn too_many(message: impl Into<String>, hint: &str) -> Error {
    Error::new(ErrorKind::Limit, SqlState::TOO_MANY_CONNECTIONS, message).hint(hint).fatal()
}

/// Takes one off, and forgets whom nobody counts for.
fn take_off<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Door {
    /// A door for that configuration.
    pub(super) fn new(config: &Config) -> Self {
        let door = Self { counts: Mutex::default(), rate: ArcSwapOption::empty() };
        door.apply(config);
        door
    }

    /// Takes over a changed configuration.
    pub(super) fn apply(&self, config: &Config) {
        let wanted = config.security.rate_limit_per_minute.and_then(NonZeroU32::new);
        if self.rate.load().as_ref().map(|rate| rate.per_minute) != wanted {
            self.rate.store(wanted.map(|per_minute| {
                let quota = governor::Quota::per_minute(per_minute);
                Arc::new(Rate { per_minute, limiter: governor::RateLimiter::keyed(quota) })
            }));
        }
    }

    /// Lets a client in, or says why not.
    pub(super) fn enter(self: &Arc<Self>, address: Option<IpAddr>, config: &Config) -> Result<Entered, Shut> {
        if let (Some(address), Some(rate)) = (address, &*self.rate.load()) {
            if rate.limiter.len() > RATED_ADDRESSES {
                rate.limiter.retain_recent();
            }
            if rate.limiter.check_key(&address).is_err() {
                let hint = "Keep connections open, or raise security.rate_limit_per_minute.";
                return Err(Shut::Refused(too_many("too many new connections from this address", hint)));
            }
        }
        let mut counts = self.counts.lock();
        if let (Some(address), Some(limit)) = (address, config.security.max_connections_per_ip)
            && counts.by_address.get(&address).is_some_and(|count| *count >= limit)
        {
            let hint = "Close some of them, or raise security.max_connections_per_ip.";
            return Err(Shut::Refused(too_many("too many connections from this address", hint)));
        }
        if counts.clients >= config.listen.max_clients {
            let refusal = too_many("sorry, too many clients already", "Raise listen.max_clients.");
            return Err(Shut::Full(refusal.detail(format!("There are {} in all databases together.", counts.clients))));
        }
        counts.clients += 1;
        Ok(self.entered(&mut counts, address, false))
    }

    /// Lets somebody in who may use the reserve.
    pub(super) fn enter_by_reserve(self: &Arc<Self>, address: Option<IpAddr>, config: &Config) -> Option<Entered> {
        let mut counts = self.counts.lock();
        if counts.in_reserve >= config.limits.reserved_clients {
            return None;
        }
        counts.in_reserve += 1;
        Some(self.entered(&mut counts, address, true))
    }

    fn entered(self: &Arc<Self>, counts: &mut Counts, address: Option<IpAddr>, by_reserve: bool) -> Entered {
        if let Some(address) = address {
            *counts.by_address.entry(address).or_default() += 1;
        }
        Entered { door: Arc::clone(self), address, by_reserve }
    }

    /// Counts a client against the limits of its user and its database, now that it is known who it is.
    pub(super) fn log_in(
        self: &Arc<Self>,
        user: &Arc<User>,
        database: &Arc<Database>,
        may_use_reserve: bool,
    ) -> Result<LoggedIn, Error> {
        let mut counts = self.counts.lock();
        let of_user = counts.by_user.get(&user.name).copied().unwrap_or(0);
        if user.max_clients.is_some_and(|limit| of_user >= limit) {
            let message = format!("too many connections for role \"{}\"", user.name);
            return Err(too_many(message, "Close some of them, or raise the user's max_clients."));
        }
        let of_database = counts.by_database.get(&database.name).copied().unwrap_or(0);
        if !may_use_reserve && database.max_clients.is_some_and(|limit| of_database >= limit) {
            let message = format!("too many connections for database \"{}\"", database.name);
            return Err(too_many(message, "Close some of them, or raise the database's max_clients."));
        }
        *counts.by_user.entry(user.name.clone()).or_default() += 1;
        *counts.by_database.entry(database.name.clone()).or_default() += 1;
        Ok(LoggedIn { door: Arc::clone(self), user: Arc::clone(user), database: Arc::clone(database) })
    }
}

/// A client's place among those of its user and its database; given up when dropped.
pub(super) struct LoggedIn {
    door: Arc<Door>,
    user: Arc<User>,
    database: Arc<Database>,
}

impl Drop for LoggedIn {
    fn drop(&mut self) {
        let mut counts = self.door.counts.lock();
        take_off(&mut counts.by_user, &self.user.name);
        take_off(&mut counts.by_database, &self.database.name);
    }
}

/// A client's place; given up when dropped.
pub(super) struct Entered {
    door: Arc<Door>,
    address: Option<IpAddr>,
    by_reserve: bool,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.door.counts.lock();
        match self.by_reserve {
            true => counts.in_reserve -= 1,
            false => counts.clients -= 1,
        }
        if let Some(address) = &self.address {
            take_off(&mut counts.by_address, address);
        }
    }
}
