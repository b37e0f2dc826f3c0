//! What has been found out about statements of a fingerprint already, so that the same point read is not planned again: one memory
//! for all sessions of a user that have the same settings.
//!
//! Only what follows from facts, catalog, role and settings is kept; all of it is forgotten when one of those changes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::answers::{Answer, Answers, Budget, Question};
use crate::backend::settings::SharedSettings;
use crate::plan::{Plan, WriteSet};
use crate::sql::fingerprint::Fingerprint;

/// Fingerprints remembered before the memory of them starts over.
const FINGERPRINTS: usize = 512;

/// Memories kept at once; sessions beyond them have one each.
const MEMORIES: usize = 256;

/// Reasons for the primary that follow from a statement's facts alone, whatever its literals and parameters are.
const BY_FACTS_ALONE: [&str; 9] = [
    "point-read",
    "read",
    "write",
    "session",
    "show",
    "cache-off",
    "transaction",
    "partitions-key",
    "partitions-lookup",
];

/// A fingerprint is a hash already.
#[derive(Debug, Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, hash: u128) {
        self.0 = hash as u64;
    }
}

/// What is known of one fingerprint.
#[derive(Debug, Clone, Default)]
struct Known {
    is_primary: bool,
    writes: Option<Written>,
}

/// What a statement may write, and whether it may change the session unseen.
#[derive(Debug, Clone, Default)]
pub(super) struct Written {
    /// `None` is nothing.
    pub(super) set: Option<Arc<WriteSet>>,
    /// A function of a user's may change the session.
    pub(super) changes_session: bool,
    /// It calls code of a user's that says it does not write.
    pub(super) trusts_code: bool,
}

impl Written {
    /// Whether nobody would have to be told.
    pub(super) fn is_nothing(&self) -> bool {
        self.set.is_none() && !self.changes_session && !self.trusts_code
    }
}

/// The state of the world that a memory holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct World {
    /// The catalog's version.
    pub(super) catalog: u64,
    /// Moves when server connections begin with other settings than before.
    pub(super) epoch: u64,
}

/// Who servers are logged in as, and what the session has set.
type Kind = (Box<str>, SharedSettings);

/// All memories of a database, one for each kind of session.
#[derive(Debug, Default)]
pub(super) struct PlanMemories {
    all: Mutex<foldhash::HashMap<Kind, Arc<PlanMemory>>>,
    budget: Arc<Budget>,
}

impl PlanMemories {
    /// The memory of sessions with that login and these settings.
    fn of(&self, world: World, login: &str, settings: &SharedSettings) -> Arc<PlanMemory> {
        let kind = (login.into(), Arc::clone(settings));
        let mut memories = self.all.lock();
        if let Some(memory) = memories.get(&kind).filter(|memory| memory.world == world) {
            return Arc::clone(memory);
        }
        let memory = Arc::new(PlanMemory { world, known: ArcSwap::default(), answers: Answers::within(&self.budget) });
        if memories.len() >= MEMORIES {
            memories.retain(|_, memory| memory.world == world && Arc::strong_count(memory) > 1);
        }
        if memories.len() < MEMORIES {
            memories.insert(kind, Arc::clone(&memory));
        }
        memory
    }
}

type Fingerprints = HashMap<Fingerprint, Known, BuildHasherDefault<AsItIs>>;

/// What is known in one world.
#[derive(Debug)]
struct PlanMemory {
    world: World,
    /// Looked at for every statement and changed for the first of its kind: a copy then.
    known: ArcSwap<Fingerprints>,
    /// Questions that the cache has answered.
    answers: Answers,
}

/// A session's way to what is known. See the module's description.
#[derive(Debug, Default)]
pub(super) struct PlanMemo {
    /// The memory, and the settings that it was asked for with.
    at: Option<(Arc<PlanMemory>, SharedSettings)>,
}

impl PlanMemo {
    /// Turns to another memory if world or settings are not those that the one at hand holds for.
    pub(super) fn check<'a>(
        &mut self,
        world: World,
        settings: &SharedSettings,
        all: &PlanMemories,
        login: impl FnOnce() -> &'a str,
    ) {
        let is_at_hand =
            self.at.as_ref().is_some_and(|(memory, of)| memory.world == world && Arc::ptr_eq(of, settings));
        if !is_at_hand {
            self.at = Some((all.of(world, login(), settings), Arc::clone(settings)));
        }
    }

    /// Whether any question is known.
    pub(super) fn has_answers(&self) -> bool {
        self.at.as_ref().is_some_and(|(memory, _)| !memory.answers.is_empty())
    }

    /// How the cache has answered that very question.
    pub(super) fn answer(&self, question: &Question<'_>) -> Option<Arc<Answer>> {
        self.at.as_ref()?.0.answers.get(question)
    }

    /// Notes that it has.
    pub(super) fn note_answer(&self, question: &Question<'_>, answer: Answer) {
        // Of another catalog than this memory is: planned while the catalog changed.
        if let Some((memory, _)) =
            self.at.as_ref().filter(|(memory, _)| memory.world.catalog == answer.read.catalog_version)
        {
            memory.answers.note(question, answer);
        }
    }

    fn look<T>(&self, fingerprint: Fingerprint, at: impl FnOnce(&Known) -> T) -> Option<T> {
        let (memory, _) = self.at.as_ref()?;
        memory.known.load().get(&fingerprint).map(at)
    }

    /// Whether statements of that fingerprint always go to the primary.
    pub(super) fn is_primary(&self, fingerprint: Fingerprint) -> bool {
        self.look(fingerprint, |known| known.is_primary).unwrap_or(false)
    }

    /// Whether statements of that fingerprint always go to the primary, and then, if it is known, whether they write nothing
    /// that anybody would have to be told.
    pub(super) fn primary_that_writes_nothing(&self, fingerprint: Fingerprint) -> Option<Option<bool>> {
        let look = |known: &Known| known.is_primary.then(|| known.writes.as_ref().map(Written::is_nothing));
        self.look(fingerprint, look).flatten()
    }

    /// Notes a plan, if it would be the same for every statement of that fingerprint.
    pub(super) fn note_plan(&self, fingerprint: Fingerprint, plan: &Plan) {
        if let Plan::Primary(reason) = plan
            && BY_FACTS_ALONE.contains(&reason.code)
        {
            self.note(fingerprint, |known| known.is_primary = true);
        }
    }

    /// What statements of that fingerprint write, if it is known.
    pub(super) fn written(&self, fingerprint: Fingerprint) -> Option<Written> {
        self.look(fingerprint, |known| known.writes.clone()).flatten()
    }

    /// Notes what statements of that fingerprint write.
    pub(super) fn note_written(&self, fingerprint: Fingerprint, written: &Written) {
        self.note(fingerprint, |known| known.writes = Some(written.clone()));
    }

    fn note(&self, fingerprint: Fingerprint, change: impl Fn(&mut Known)) {
        let Some((memory, _)) = &self.at else { return };
        memory.known.rcu(|known| {
            let mut known =
                if known.len() < FINGERPRINTS { Fingerprints::clone(known) } else { Fingerprints::default() };
            change(known.entry(fingerprint).or_default());
            known
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::settings::Settings;
    use crate::plan::Reason;

    const WORLD: World = World { catalog: 1, epoch: 0 };

    fn primary(code: &'static str) -> Plan {
        Plan::Primary(Reason { code, text: "".into() })
    }

    fn memo(all: &PlanMemories, world: World, login: &str, settings: &SharedSettings) -> PlanMemo {
        let mut memo = PlanMemo::default();
        memo.check(world, settings, all, || login);
        memo
    }

    #[test]
    fn what_depends_on_literals_is_not_kept() {
        let memo = memo(&PlanMemories::default(), WORLD, "ann", &SharedSettings::default());
        memo.note_plan(Fingerprint(1), &primary("point-read"));
        memo.note_plan(Fingerprint(2), &primary("stable-function"));
        assert!(memo.is_primary(Fingerprint(1)));
        assert!(!memo.is_primary(Fingerprint(2)));
    }

    #[test]
    fn sessions_that_are_alike_know_the_same() {
        let (all, settings) = (PlanMemories::default(), SharedSettings::default());
        memo(&all, WORLD, "ann", &settings).note_plan(Fingerprint(1), &primary("write"));
        let alike = memo(&all, WORLD, "ann", &SharedSettings::default());
        assert!(alike.is_primary(Fingerprint(1)));
        assert_eq!(alike.primary_that_writes_nothing(Fingerprint(1)), Some(None));
        alike.note_written(Fingerprint(1), &Written::default());
        assert_eq!(alike.primary_that_writes_nothing(Fingerprint(1)), Some(Some(true)));
        assert!(!memo(&all, WORLD, "bob", &settings).is_primary(Fingerprint(1)), "another role reads other tables");
    }

    #[test]
    fn another_catalog_other_settings_and_other_defaults_know_nothing() {
        let (all, settings) = (PlanMemories::default(), SharedSettings::default());
        let mut set = Settings::default();
        set.set("search_path", "other");
        let mut memo = memo(&all, WORLD, "ann", &settings);
        memo.note_plan(Fingerprint(1), &primary("write"));
        let others = [
            (World { catalog: 2, ..WORLD }, SharedSettings::default()),
            (World { epoch: 1, ..WORLD }, SharedSettings::default()),
            (WORLD, Arc::new(set)),
        ];
        for (world, settings) in others {
            memo.check(world, &settings, &all, || "ann");
            assert!(!memo.is_primary(Fingerprint(1)), "{world:?} {settings:?}");
        }
    }

    #[test]
    fn it_is_bounded() {
        let all = PlanMemories::default();
        for number in 0..2 * MEMORIES {
            let mut set = Settings::default();
            set.set("work_mem", &number.to_string());
            drop(memo(&all, WORLD, "ann", &Arc::new(set)));
        }
        assert!(all.all.lock().len() <= MEMORIES);
        let memo = memo(&all, WORLD, "ann", &SharedSettings::default());
        for number in 0..=FINGERPRINTS {
            memo.note_plan(Fingerprint(number as u128), &primary("write"));
        }
        assert!(memo.is_primary(Fingerprint(FINGERPRINTS as u128)) && !memo.is_primary(Fingerprint(0)));
    }
}
