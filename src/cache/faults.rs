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
    /// The search path is left out of the key.
    pub no_search_path_in_key: bool,
    /// The time zone is left out of the key.
    pub no_time_zone_in_key: bool,
    /// The settings that policies read are left out of the key.
    pub no_tenant_in_key: bool,
    /// The parameters' values are left out of the key.
    pub no_parameters_in_key: bool,
    /// The others are told of a write after its commit, and not before.
    pub invalidate_after_commit: bool,
    /// A doubt is settled as soon as it is raised: before the commit is acknowledged, or even sent.
    pub settle_before_commit: bool,
    /// A write whose outcome is not known is settled at once.
    pub unknown_is_settled: bool,
    /// A change of the catalog puts nothing in doubt.
    pub ignore_catalog_changes: bool,
    /// Hits are served while a pgherd's registration has lapsed.
    pub serve_while_lapsed: bool,
    /// While Redis cannot be asked, memory answers alone.
    pub serve_without_redis: bool,
    /// A new generation serves and stores at once.
    pub serve_while_young: bool,
    /// A registration carries nothing of what is open.
    pub register_without_doubts: bool,
    /// What is looked at for the first time is served and stored before every pgherd acts upon it.
    pub serve_before_all_act: bool,
    /// A pgherd that acts upon what is looked at says nothing of its open writes.
    pub act_without_open_writes: bool,
    /// A pgherd that acts upon what is looked at says nothing of what it has written since it was told.
    pub act_without_past_writes: bool,
    /// A new generation is served from whatever may be under way that nobody answers for.
    pub ignore_orphans: bool,
    /// A replica fills whatever it has replayed.
    pub any_replica: bool,
    /// Roles share answers whatever they may read.
    pub share_with_anyone: bool,
}

#[cfg(feature = "faults")]
impl Faults {
    /// The faults that the environment variable `PGHERD_FAULT` names, one or none: how a test puts them into another process.
    ///
    /// # Errors
    /// There is no fault of that name.
    pub fn from_environment() -> Result<Self, String> {
        match std::env::var("PGHERD_FAULT") {
            Ok(name) if !name.is_empty() => {
                Self::named(&name).ok_or_else(|| format!("PGHERD_FAULT: there is no fault {name}"))
            }
            _ => Ok(Self::default()),
        }
    }
}

/// The switches as the code asks for them: constant `false` where faults are not compiled in.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Switches {
    #[cfg(any(test, feature = "faults"))]
    faults: Faults,
}

macro_rules! switches {
    ($($name:ident),* $(,)?) => {
        #[cfg(feature = "faults")]
        impl Faults {
            /// Every fault's name.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            fn named(name: &str) -> Option<Self> {
                let mut faults = Self::default();
                match name {
                    $(stringify!($name) => faults.$name = true,)*
                    _ => return None,
                }
                Some(faults)
            }
        }

        impl Switches {
            $(
                #[cfg(any(test, feature = "faults"))]
                #[cfg_attr(not(feature = "faults"), allow(dead_code, reason = "the session asks for some, with the feature"))]
                pub(crate) fn $name(self) -> bool {
                    self.faults.$name
                }

                #[cfg(not(any(test, feature = "faults")))]
                #[allow(dead_code, reason = "the session asks for some, with the feature")]
                pub(crate) const fn $name(self) -> bool {
                    false
                }
            )*
        }
    };
}

switches!(
    no_second_raise,
    doubt_as_flag,
    store_without_comparing,
    no_role_in_key,
    no_cascades,
    no_search_path_in_key,
    no_time_zone_in_key,
    no_tenant_in_key,
    no_parameters_in_key,
    invalidate_after_commit,
    settle_before_commit,
    unknown_is_settled,
    ignore_catalog_changes,
    serve_while_lapsed,
    serve_without_redis,
    serve_while_young,
    register_without_doubts,
    serve_before_all_act,
    act_without_open_writes,
    act_without_past_writes,
    ignore_orphans,
    any_replica,
    share_with_anyone,
);

impl Switches {
    /// Whether a setting is one that is left out of the key.
    pub(crate) fn leaves_out(self, setting: &str) -> bool {
        (self.no_search_path_in_key() && setting.eq_ignore_ascii_case("search_path"))
            || (self.no_time_zone_in_key() && setting.eq_ignore_ascii_case("timezone"))
            || (self.no_tenant_in_key() && setting.contains('.'))
    }
}

#[cfg(any(test, feature = "faults"))]
impl From<Faults> for Switches {
    fn from(faults: Faults) -> Self {
        Self { faults }
    }
}
