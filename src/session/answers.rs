//! Questions that the cache has answered, with the keys of their answers: bounded in bytes over all sessions of a database.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::RwLock;
use xxhash_rust::xxh3::Xxh3Default;

use super::memo::AsItIs;
use crate::cache::Key;
use crate::plan::CachedRead;
use crate::sql::facts::SharedFacts;

/// What all questions of a database may take.
const BYTES: usize = 8 << 20;
/// What a question takes beside its own bytes and its key's.
const OVERHEAD_BYTES: usize = 512;
/// Longer questions are planned each time.
const LONGEST: usize = 16 * 1024;

/// What a client asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    /// The statement's text.
    pub(super) text: &'a [u8],
    /// Its parameters' types.
    pub(super) types: &'a [u32],
    /// Its Bind without names; empty for a simple Query.
    pub(super) bind: &'a [u8],
}

impl Question<'_> {
    fn hash(&self) -> u128 {
        let mut hasher = Xxh3Default::new();
        hasher.update(&self.text.len().to_ne_bytes());
        hasher.update(self.text);
        self.types.iter().for_each(|oid| hasher.update(&oid.to_ne_bytes()));
        hasher.update(self.bind);
        hasher.digest128()
    }

    fn bytes(&self) -> usize {
        self.text.len() + size_of_val(self.types) + self.bind.len()
    }
}

/// How it was answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// The answer's key.
    pub(super) key: Key,
    /// What it depends on.
    pub(super) read: Arc<CachedRead>,
    /// The statement's facts.
    pub(super) facts: SharedFacts,
}

#[derive(Debug)]
struct Known {
    text: Box<[u8]>,
    types: Box<[u32]>,
    bind: Box<[u8]>,
    answer: Arc<Answer>,
}

impl Known {
    fn is(&self, question: &Question<'_>) -> bool {
        *self.text == *question.text && *self.types == *question.types && *self.bind == *question.bind
    }
}

/// Bytes that are taken, of those that all answers of a database may take.
#[derive(Debug, Default)]
pub(super) struct Budget(AtomicUsize);

/// The answers of one kind of session.
#[derive(Debug, Default)]
pub(super) struct Answers {
    known: RwLock<HashMap<u128, Known, BuildHasherDefault<AsItIs>>>,
    taken: AtomicUsize,
    budget: Arc<Budget>,
}

impl Answers {
    pub(super) fn within(budget: &Arc<Budget>) -> Self {
        Self { known: RwLock::default(), taken: AtomicUsize::new(0), budget: Arc::clone(budget) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.taken.load(Ordering::Relaxed) == 0
    }

    /// How that very question was answered.
    pub(super) fn get(&self, question: &Question<'_>) -> Option<Arc<Answer>> {
        let known = self.known.read();
        known.get(&question.hash()).filter(|known| known.is(question)).map(|known| Arc::clone(&known.answer))
    }

    /// Remembers it. Where there is no room this kind's answers start over.
    pub(super) fn note(&self, question: &Question<'_>, answer: Answer) {
        let bytes = OVERHEAD_BYTES + question.bytes() + answer.key.bytes().len();
        if question.bytes() > LONGEST {
            return;
        }
        let known = Known {
            text: question.text.into(),
            types: question.types.into(),
            bind: question.bind.into(),
            answer: Arc::new(answer),
        };
        let mut all = self.known.write();
        let hash = question.hash();
        if all.get(&hash).is_some_and(|known| known.is(question)) {
            return;
        }
        let taken = self.budget.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut own = self.taken.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if taken > BYTES {
            all.clear();
            self.budget.0.fetch_sub(own, Ordering::Relaxed);
            own = 0;
            self.taken.store(0, Ordering::Relaxed);
        }
        if own > 0 {
            all.insert(hash, known);
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(*self.taken.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Reason;

    fn answer(number: usize) -> Answer {
        let read = CachedRead {
            relations: vec![1],
            catalog_version: 1,
            ttl: std::time::Duration::from_secs(1),
            is_pinned: false,
            from_replica: false,
            shared_by_readers_of: None,
            reason: Reason { code: "cacheable", text: "".into() },
        };
        let facts = crate::sql::Analyzer::new().facts(b"select 1", true);
        Answer { key: Key::of_text(&number.to_string()), read: Arc::new(read), facts }
    }

    #[test]
    fn a_question_is_every_byte_of_it() {
        let answers = Answers::default();
        let question = Question { text: b"select $1", types: &[23], bind: b"\0\0\0\x01" };
        assert!(answers.is_empty() && answers.get(&question).is_none());
        answers.note(&question, answer(1));
        assert!(!answers.is_empty() && answers.get(&question).is_some());
        let others = [
            Question { text: b"select $2", ..question },
            Question { types: &[20], ..question },
            Question { types: &[], ..question },
            Question { bind: b"\0\0\0\x02", ..question },
            Question { bind: b"", ..question },
        ];
        for other in others {
            assert!(answers.get(&other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn questions_take_no_more_than_they_may_and_give_it_back() {
        let budget = Arc::new(Budget::default());
        let (one, other) = (Answers::within(&budget), Answers::within(&budget));
        let text = |number: usize| format!("{number:08000}");
        for number in 0..3000 {
            let text = text(number);
            let question = Question { text: text.as_bytes(), types: &[], bind: b"" };
            if number % 2 == 0 { &one } else { &other }.note(&question, answer(1));
            assert!(budget.0.load(Ordering::Relaxed) <= BYTES);
        }
        let long = vec![b'x'; LONGEST + 1];
        one.note(&Question { text: &long, types: &[], bind: b"" }, answer(1));
        assert!(one.get(&Question { text: &long, types: &[], bind: b"" }).is_none());
        drop((one, other));
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }
}
