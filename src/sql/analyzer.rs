//! Facts of query strings, memoized: by fingerprint where literals do not matter, by the exact text where they do.

use std::mem::size_of;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use moka::sync::Cache;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::command;
use super::facts::{Class, Effect, Facts, Name, SharedFacts, Statement};
use super::fingerprint::{fingerprint, normalized};
use super::piece::{self, Found, Piece};
use super::walk;
use crate::limits;

/// Reads query strings; one for the whole process, shared by every session.
pub struct Analyzer {
    memo: Cache<u128, Entry>,
    recent: Recent,
    seed: u64,
}

#[derive(Clone)]
enum Entry {
    Facts(SharedFacts),
    /// The facts of this fingerprint differ from text to text: look under the text's own hash.
    ByText,
}

/// Facts found lately, one place for each of some hashes: a look costs no lock and no bookkeeping.
struct Recent(Box<[ArcSwapOption<(u128, SharedFacts)>]>);

/// Places of [`Recent`]; a power of two.
const RECENT: usize = 1024;
/// Weight of facts up to which they are kept in [`Recent`].
const RECENT_BYTES: u32 = 8 * 1024;

impl Recent {
    fn new() -> Self {
        Self((0..RECENT).map(|_| ArcSwapOption::empty()).collect())
    }

    fn place(&self, key: u128) -> &ArcSwapOption<(u128, SharedFacts)> {
        &self.0[key as usize % RECENT]
    }

    fn get(&self, key: u128) -> Option<SharedFacts> {
        let found = self.place(key).load();
        found.as_ref().filter(|found| found.0 == key).map(|found| Arc::clone(&found.1))
    }

    fn put(&self, key: u128, facts: &SharedFacts) {
        if weight(&Entry::Facts(Arc::clone(facts))) <= RECENT_BYTES {
            self.place(key).store(Some(Arc::new((key, Arc::clone(facts)))));
        }
    }
}

impl Analyzer {
    /// An analyzer whose memo holds `limits::FACTS_MEMO_BYTES`.
    pub fn new() -> Self {
        Self::with_memo_bytes(limits::FACTS_MEMO_BYTES)
    }

    /// An analyzer whose memo holds that many bytes.
    pub fn with_memo_bytes(bytes: u64) -> Self {
        let memo = Cache::builder().max_capacity(bytes).weigher(|_, entry| weight(entry)).build();
        Self { memo, recent: Recent::new(), seed: rand::random() }
    }

    /// As [`Analyzer::facts`], for the text of a Parse, which comes again and again as it is: found by its exact bytes.
    pub fn facts_of_parse(&self, text: &[u8], standard_conforming_strings: bool) -> SharedFacts {
        let key = self.exact_key(text, standard_conforming_strings);
        self.recent.get(key).unwrap_or_else(|| {
            let facts = self.facts(text, standard_conforming_strings);
            self.recent.put(key, &facts);
            facts
        })
    }

    /// Facts of a query string as a session with that `standard_conforming_strings` reads it.
    pub fn facts(&self, text: &[u8], standard_conforming_strings: bool) -> SharedFacts {
        let (normal, hint) = normalized(text, standard_conforming_strings, self.seed);
        // The hint stands in a comment, which the fingerprint leaves out.
        let asked = (hint.cache, hint.ttl_seconds, hint.route);
        let key = if asked == (None, None, None) { normal } else { self.keyed(normal, &format!("{asked:?}")) };
        if let Some(facts) = self.recent.get(key) {
            return facts;
        }
        match self.memo.get(&key) {
            Some(Entry::Facts(facts)) => {
                self.recent.put(key, &facts);
                return facts;
            }
            Some(Entry::ByText) => {
                let exact = self.exact_key(text, standard_conforming_strings);
                if let Some(Entry::Facts(facts)) = self.memo.get(&exact) {
                    return facts;
                }
            }
            None => {}
        }
        let (mut facts, literal_sensitive) = analyze(text, standard_conforming_strings);
        facts.hint = hint;
        let facts = Arc::new(facts);
        if literal_sensitive {
            self.memo.insert(key, Entry::ByText);
            self.memo.insert(self.exact_key(text, standard_conforming_strings), Entry::Facts(Arc::clone(&facts)));
        } else {
            self.memo.insert(key, Entry::Facts(Arc::clone(&facts)));
        }
        facts
    }

    fn exact_key(&self, text: &[u8], standard_conforming_strings: bool) -> u128 {
        let hash = xxh3_128_with_seed(text, !self.seed);
        if standard_conforming_strings { hash } else { hash.rotate_left(64) }
    }

    fn keyed(&self, hash: u128, with: &str) -> u128 {
        xxh3_128_with_seed(&[&hash.to_le_bytes(), with.as_bytes()].concat(), self.seed)
    }
}

impl Default for Analyzer {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Analyzer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Analyzer").field("entries", &self.memo.entry_count()).finish_non_exhaustive()
    }
}

/// Facts of a part of a text: a query that stands in another statement. Not memoized.
pub fn facts_of(text: &str, standard_conforming_strings: bool) -> Facts {
    analyze(text.as_bytes(), standard_conforming_strings).0
}

/// Facts of a query string without a memo, and whether they depend on a literal's value.
fn analyze(text: &[u8], standard_conforming_strings: bool) -> (Facts, bool) {
    let mut literal_sensitive = false;
    let mut statements = Vec::new();
    for tokens in piece::split(text, standard_conforming_strings) {
        let found = analyze_piece(Piece { text, tokens: &tokens });
        literal_sensitive |= found.literal_sensitive;
        statements.push(found.statement);
    }
    let facts = Facts {
        fingerprint: fingerprint(text, standard_conforming_strings),
        statements,
        hint: super::facts::Hint::default(),
    };
    (facts, literal_sensitive)
}

/// Facts of one statement.
pub(super) fn analyze_piece(piece: Piece<'_>) -> Found {
    if piece.tokens.is_empty() {
        return Statement::new(Class::Empty).into();
    }
    command::recognise(piece).unwrap_or_else(|| walk::analyze(piece))
}

/// Bytes that an entry holds, near enough to bound the memo.
fn weight(entry: &Entry) -> u32 {
    let Entry::Facts(facts) = entry else { return 64 };
    let texts = |list: &[Box<str>]| list.iter().map(|text| text.len() + size_of::<Box<str>>()).sum::<usize>();
    let names = |list: &[Name]| {
        let name = |name: &Name| name.name.len() + name.schema.as_ref().map_or(0, |schema| schema.len());
        list.iter().map(|one| name(one) + size_of::<Name>()).sum::<usize>()
    };
    let statement = |s: &Statement| {
        size_of::<Statement>()
            + names(&s.reads)
            + names(&s.writes)
            + names(&s.functions)
            + names(&s.casts)
            + names(&s.mentions)
            + texts(&s.operators)
            + texts(&s.value_functions)
            + texts(&s.identifiers)
            + texts(&s.fields)
            + s.effects.len() * (size_of::<Effect>() + 16)
            + s.time_casts.len() * 64
    };
    let bytes = 192 + facts.statements.iter().map(statement).sum::<usize>();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "analyzer_tests.rs"]
mod tests;
