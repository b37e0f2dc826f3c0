//! Faults that can be put in on purpose, so that the tests can show that they would find them. Compiled in for tests only.

/// Which faults are on. Exists under `cfg(test)` and the cargo feature `faults` alone.
#[cfg(any(test, feature = "faults"))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// A settled write leaves the relation's epoch as it was.
    pub no_second_raise: bool,
    /// The set of doubts is one flag: the first writer to finish clears it for all.
    pub doubt_as_flag: bool,
    /// A fill is stored under the epochs of the moment of storing, not compared with those noted before it ran.
    pub store_without_comparing: bool,
    /// The role is left out of the key.
    pub no_role_in_key: bool,
    /// A write is taken to change the relations that it names and no other.
    pub no_cascades: bool,
}

/// The switches as the code asks for them: constant `false` where faults are not compiled in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Switches {
    #[cfg(any(test, feature = "faults"))]
    faults: Faults,
}

macro_rules! switches {
    ($($name:ident),*) => {
        impl Switches {
            $(
                #[cfg(any(test, feature = "faults"))]
                pub(crate) fn $name(self) -> bool {
                    self.faults.$name
                }

                #[cfg(not(any(test, feature = "faults")))]
                pub(crate) const fn $name(self) -> bool {
                    false
                }
            )*
        }
    };
}

switches!(no_second_raise, doubt_as_flag, store_without_comparing, no_role_in_key);

#[cfg(feature = "faults")]
impl Switches {
    pub(crate) fn no_cascades(self) -> bool {
        self.faults.no_cascades
    }
}

#[cfg(any(test, feature = "faults"))]
impl From<Faults> for Switches {
    fn from(faults: Faults) -> Self {
        Self { faults }
    }
}
