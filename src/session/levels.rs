//! Savepoints behind which portals were bound: which portals go with ROLLBACK TO, and whose those are that RELEASE leaves.

use super::listen::truncated;

/// The savepoints that were set while there were portals, the outermost first. Those of before are nobody's business: going back to one of
/// them takes all portals.
#[derive(Debug, Default)]
pub(super) struct Levels(Vec<Box<str>>);

impl Levels {
    /// How many savepoints a portal stands behind that is bound now.
    pub(super) fn now(&self) -> usize {
        self.0.len()
    }

    /// SAVEPOINT has worked.
    pub(super) fn set(&mut self, name: &str) {
        self.0.push(truncated(name).into());
    }

    /// RELEASE has worked: portals behind more savepoints than that stand behind as many from now on.
    pub(super) fn release(&mut self, name: &str) -> usize {
        let at = self.place_of(name).unwrap_or(0);
        self.0.truncate(at);
        at
    }

    /// ROLLBACK TO has worked: portals behind more savepoints than that are gone; all of them without one.
    pub(super) fn go_back(&mut self, name: &str) -> Option<usize> {
        let at = self.place_of(name);
        // The savepoint itself stays.
        self.0.truncate(at.map_or(0, |at| at + 1));
        at
    }

    fn place_of(&self, name: &str) -> Option<usize> {
        self.0.iter().rposition(|known| **known == *truncated(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_savepoint_is_the_innermost_of_its_name() {
        let mut levels = Levels::default();
        ["a", "b", "a", "c"].into_iter().for_each(|name| levels.set(name));
        assert_eq!((levels.go_back("a"), levels.now()), (Some(2), 3), "it stays, and what was set behind it does not");
        assert_eq!((levels.release("a"), levels.now()), (2, 2));
        assert_eq!((levels.go_back("a"), levels.now()), (Some(0), 1));
        levels.set("b");
        assert_eq!((levels.release("a"), levels.now()), (0, 0), "with those behind it");
    }

    #[test]
    fn a_savepoint_of_before_all_portals_takes_them_all() {
        let mut levels = Levels::default();
        levels.set("a");
        assert_eq!((levels.go_back("before"), levels.now()), (None, 0));
        levels.set("a");
        assert_eq!((levels.release("before"), levels.now()), (0, 0), "they stay, and stand behind none that is known");
    }

    #[test]
    fn a_name_is_as_long_as_postgresql_keeps_it() {
        let mut levels = Levels::default();
        levels.set(&"a".repeat(64));
        assert_eq!(levels.go_back(&"a".repeat(63)), Some(0));
    }
}
