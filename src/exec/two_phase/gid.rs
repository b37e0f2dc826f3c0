//! Names of prepared transactions: who decides, which pgherd began it, and which part of it this is.

use std::fmt;

/// What all names begin with that any pgherd of any fleet gives.
pub const PREFIX: &str = "pgherd:";

/// A database that lives through restarts, promotions and moves: its cluster's system identifier and its oid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// `pg_control_system().system_identifier`
    pub system: u64,
    /// `pg_database.oid`
    pub database: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.system, self.database)
    }
}

impl Place {
    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (system, database) = text.split_once('.')?;
        let place =
            Self { system: u64::from_str_radix(system, 16).ok()?, database: u32::from_str_radix(database, 16).ok()? };
        (place.to_string() == text).then_some(place)
    }
}

/// One transaction over several servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Transaction {
    /// Where the decision is written.
    pub decider: Place,
    /// The connection to the decider that alone may write COMMIT: a random number, and the key of an advisory lock that lives
    /// as long as it does.
    pub coordinator: i64,
    /// Which of that connection's.
    pub number: u64,
}

impl Transaction {
    /// The key of its record on the decider.
    pub fn key(&self) -> String {
        format!("{:x}:{:x}", self.coordinator, self.number)
    }

    /// The name of one of its prepared transactions.
    pub fn gid(&self, part: usize) -> String {
        format!("{PREFIX}{}:{}:{part:x}", self.decider, self.key())
    }

    /// Reads a name; `None` for one that no pgherd of this version gives.
    pub fn parse(gid: &str) -> Option<Self> {
        let mut parts = gid.strip_prefix(PREFIX)?.split(':');
        let decider = Place::parse(parts.next()?)?;
        let coordinator = i64::from_str_radix(parts.next()?, 16).ok()?;
        let number = u64::from_str_radix(parts.next()?, 16).ok()?;
        let part = usize::from_str_radix(parts.next()?, 16).ok()?;
        let transaction = Self { decider, coordinator, number };
        (transaction.gid(part) == gid).then_some(transaction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_who_decides_and_nothing_else_is_taken_for_one() {
        let decider = Place { system: 7_312_345_678_901_234_567, database: 16_384 };
        let transaction = Transaction { decider, coordinator: i64::MAX, number: 41 };
        let gid = transaction.gid(3);
        assert!(gid.len() < 200, "PostgreSQL's limit");
        assert_eq!(Transaction::parse(&gid), Some(transaction));
        for other in [
            "",
            "pgherd:",
            "mine",
            "pgherd:1.2:3",
            "pgherd:1.2:3:4:5:6",
            "pgherd:01.2:3:4:5",
            "pgherd:1.2:-3:4:5",
            "PGHERD:1.2:3:4:5",
        ] {
            assert_eq!(Transaction::parse(other), None, "{other}");
        }
    }
}
