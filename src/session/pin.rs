//! Why a client keeps its server connection beyond its transaction.

use crate::sql::facts::Effect;

/// A state that lives in the server's session and cannot be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Pin {
    /// A temporary table, view or sequence.
    Temporary = 1,
    /// LISTEN on the client's own server; see `session::listen`.
    Listen = 2,
    /// A session advisory lock.
    AdvisoryLock = 4,
    /// A cursor WITH HOLD.
    HoldCursor = 8,
    /// SQL-level PREPARE.
    Prepared = 16,
    /// Settings changed in a way that the text does not show.
    OpaqueSettings = 32,
    /// LOAD, setseed, large object descriptors and the like.
    ServerState = 64,
}

const ALL: [Pin; 7] = [
    Pin::Temporary,
    Pin::Listen,
    Pin::AdvisoryLock,
    Pin::HoldCursor,
    Pin::Prepared,
    Pin::OpaqueSettings,
    Pin::ServerState,
];

impl Pin {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Temporary => "temporary-object",
            Self::Listen => "listen",
            Self::AdvisoryLock => "advisory-lock",
            Self::HoldCursor => "hold-cursor",
            Self::Prepared => "sql-prepare",
            Self::OpaqueSettings => "opaque-settings",
            Self::ServerState => "server-state",
        }
    }

    /// The pin that an effect makes, if it makes one.
    pub fn of(effect: &Effect) -> Option<Self> {
        match effect {
            Effect::TemporaryObject => Some(Self::Temporary),
            Effect::AdvisoryLock => Some(Self::AdvisoryLock),
            Effect::HoldCursor => Some(Self::HoldCursor),
            Effect::Prepare(_) => Some(Self::Prepared),
            Effect::OpaqueSettings => Some(Self::OpaqueSettings),
            Effect::ServerState | Effect::Load => Some(Self::ServerState),
            _ => None,
        }
    }
}

/// The pins of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pins(u16);

impl Pins {
    /// As bits, for a place that holds no more than a number.
    pub fn bits(self) -> u16 {
        self.0
    }

    /// What [`Pins::bits`] gave.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Whether there is one.
    pub fn any(self) -> bool {
        self.0 != 0
    }

    /// Adds one; returns whether it is new.
    pub fn add(&mut self, pin: Pin) -> bool {
        let before = self.0;
        self.0 |= pin as u16;
        self.0 != before
    }

    /// Takes one away.
    pub fn remove(&mut self, pin: Pin) {
        self.0 &= !(pin as u16);
    }

    /// All are gone, after `DISCARD ALL`.
    pub fn clear(&mut self) {
        self.0 = 0;
    }

    /// Whether that one is there.
    pub fn has(self, pin: Pin) -> bool {
        self.0 & pin as u16 != 0
    }

    /// Those that are there.
    pub fn iter(self) -> impl Iterator<Item = Pin> {
        ALL.into_iter().filter(move |&pin| self.has(pin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_counted_once() {
        let mut pins = Pins::default();
        assert!(pins.add(Pin::Listen));
        assert!(!pins.add(Pin::Listen));
        assert_eq!(pins.iter().map(Pin::label).collect::<Vec<_>>(), ["listen"]);
        pins.clear();
        assert!(!pins.any());
    }
}
