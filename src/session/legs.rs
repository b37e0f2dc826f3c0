//! The legs of a statement over several shards: what a shard's cache has is replayed, what it has not is run there and kept.
//!
//! All of it shows one moment, as far as commits over several shards go: `docs/design/2026-11-cached-by-shard.md` says why.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::future::join_all;

use super::Session;
use super::context::{ShardCache, Target};
use super::fan_out::LeasedLeg;
use super::planned::Execution;
use crate::cache::{AtHand, Entry, FillTicket, Key, Lookup, ResultCache};
use crate::error::Error;
use crate::exec::capture::Capture;
use crate::exec::fanout::{Given, Holds, Leg, Replay};
use crate::plan::cacheable::part_is_cacheable;
use crate::plan::distribute::Streamed;
use crate::plan::rules::{Bound, Input, Transaction};
use crate::plan::{CachedRead, Reason};
use crate::sql::facts::{Facts, SharedFacts};
use crate::wire::frame::{Frame, Frames};

/// One shard's part of an answer.
pub(super) enum Part {
    /// It is run on the shard, and kept if there is a place for it.
    Fresh(LeasedLeg, Option<Box<Filling>>),
    /// It is there already.
    Kept(Replay),
}

impl Part {
    /// Its connection, if it has one.
    pub(super) fn into_leg(self) -> Option<LeasedLeg> {
        match self {
            Self::Fresh(leg, _) => Some(leg),
            Self::Kept(_) => None,
        }
    }
}

impl Leg for Part {
    fn queue(&mut self) -> &mut BytesMut {
        match self {
            Self::Fresh(leg, _) => leg.queue(),
            Self::Kept(replay) => replay.queue(),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::Fresh(leg, _) => leg.poll_flush(cx),
            Self::Kept(replay) => replay.poll_flush(cx),
        }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, Error>> {
        match self {
            Self::Fresh(leg, filling) => {
                // It is being given up.
                *filling = None;
                leg.poll_frame(cx)
            }
            Self::Kept(replay) => replay.poll_frame(cx),
        }
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>, tag: u8) -> Poll<Result<Frames, Error>> {
        match self {
            Self::Fresh(leg, filling) => {
                let frames = std::task::ready!(leg.poll_frames(cx, tag))?;
                if let Some(filling) = filling {
                    filling.take(&frames);
                }
                Poll::Ready(Ok(frames))
            }
            Self::Kept(replay) => replay.poll_frames(cx, tag),
        }
    }

    fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    fn rewind(&mut self) {
        if let Self::Kept(replay) = self {
            replay.rewind();
        }
    }

    fn cancel(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self {
            Self::Fresh(leg, _) => leg.cancel(),
            Self::Kept(replay) => replay.cancel(),
        }
    }
}

/// What a shard gives, as it is being kept.
pub(super) struct Filling {
    ticket: FillTicket,
    ttl: Duration,
    began: Instant,
    capture: Capture,
    description_len: usize,
    rows: u64,
    limit: usize,
    course: Course,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// The statement is not described yet.
    Begins,
    /// Its rows come.
    Flows,
    /// All of it has come.
    Whole,
    /// It cannot be kept.
    Spoilt,
}

impl Filling {
    fn new(ticket: FillTicket, read: &CachedRead, limit: usize) -> Self {
        Self {
            ticket: ticket.pinned(read.is_pinned),
            ttl: read.ttl,
            began: Instant::now(),
            capture: Capture::default(),
            description_len: 0,
            rows: 0,
            limit,
            course: Course::Begins,
        }
    }

    /// Takes in what the shard said: RowDescription, DataRows and the CommandComplete behind them are kept.
    fn take(&mut self, frames: &Frames) {
        let bytes = &frames.bytes;
        match (self.course, bytes.first()) {
            (Course::Begins, Some(b'T')) => {
                (self.course, self.description_len) = (Course::Flows, bytes.len());
            }
            (Course::Flows, Some(b'D')) => self.rows += frames.count as u64,
            (Course::Flows, Some(b'C')) => self.course = Course::Whole,
            // BEGIN's and COMMIT's own answers, and what says that something was done.
            (Course::Begins | Course::Whole, Some(b'C')) | (_, Some(b'Z' | b'1' | b't' | b'2')) => return,
            (Course::Spoilt, _) => return,
            // A notice, an error, a setting that changed: what is replayed would lack it.
            _ => self.course = Course::Spoilt,
        }
        if self.capture.len() + bytes.len() > self.limit {
            self.course = Course::Spoilt;
        }
        match self.course {
            Course::Spoilt => self.capture = Capture::default(),
            _ => self.capture.push(bytes),
        }
    }

    /// The leg has ended well: what it gave is kept, if nothing has been written meanwhile.
    async fn store(self, given: Given) {
        if self.course != Course::Whole {
            self.ticket.uncacheable("too large, or with notices");
            return;
        }
        let Some(bytes) = self.capture.whole().await else { return };
        let entry = Entry::new(bytes, self.description_len, self.rows, given.took, self.ttl).as_of(self.began);
        if entry.remaining().is_zero() {
            self.ticket.uncacheable("it takes longer than its answer may be kept");
        } else {
            self.ticket.store(entry).await;
        }
    }
}

/// What a shard's cache is asked.
struct Question {
    key: Key,
    read: CachedRead,
}

impl Session {
    /// The legs of a statement. What is kept is taken as it was just now: [`holds`] tells whether it still is when the others take their
    /// snapshots. Without `recalls` each leg runs on its shard.
    pub(super) async fn parts_of(
        &mut self,
        execution: &Execution<'_>,
        streamed: &Streamed,
        recalls: bool,
    ) -> Result<(Vec<Part>, Option<Holds>), Error> {
        let asked = self.questions(execution, streamed);
        let mut at_hand: Vec<Option<AtHand>> = streamed.shards.iter().map(|_| None).collect();
        if recalls {
            at_hand = self.recall(streamed, &asked).await;
        }
        if at_hand.iter().all(Option::is_some) && self.all_hold(streamed, &asked, &at_hand).await {
            return Ok((self.replays(streamed, &at_hand), None));
        }
        // Before the latch is taken: whoever has a connection may wait for it.
        let leased = self.lease_missing(streamed, &at_hand).await?;
        let sources = self.sources(streamed, &asked, at_hand, recalls).await;
        let limit = self.db.cache_config.max_entry_bytes;
        let (mut parts, mut kept) = (Vec::with_capacity(sources.len()), Vec::new());
        for (((source, leg), asked), &shard) in sources.into_iter().zip(leased).zip(asked).zip(&streamed.shards) {
            if let (Source::Cache(at_hand), Some(asked), Some(known)) =
                (&source, &asked, self.db.shard_caches.get(shard))
            {
                let (cache, key, read) = (Arc::clone(&known.cache), asked.key.clone(), asked.read.clone());
                kept.push(Kept { cache, key, read, at_hand: at_hand.clone() });
            }
            parts.extend(self.part_from(shard, source, leg, asked.as_ref(), limit));
        }
        Ok((parts, holds(kept)))
    }

    /// What each shard's cache is to be asked; `None` for a part that is run as if there was no cache.
    fn questions(&self, execution: &Execution<'_>, streamed: &Streamed) -> Vec<Option<Question>> {
        let is_plain = execution.max_rows == 0
            && self.transaction_view() == Transaction::Outside
            && !self.db.writes_unseen(execution.facts.fingerprint)
            && !self.db.may_run_unseen(execution.facts);
        if self.db.shard_caches.is_empty() || !is_plain {
            return streamed.shards.iter().map(|_| None).collect();
        }
        let part = self.facts_of_part(streamed);
        let question = |&shard: &usize| match self.part_as_read(execution, streamed, &part, shard) {
            Ok(read) => Some(Question { key: self.key_of_part(execution, streamed, shard)?, read }),
            Err(reason) => {
                self.db.shared.metrics.cache_refusal(reason.code);
                None
            }
        };
        streamed.shards.iter().map(question).collect()
    }

    fn facts_of_part(&self, streamed: &Streamed) -> SharedFacts {
        self.db.shared.analyzer.facts(streamed.sql.as_bytes(), self.conforming_strings())
    }

    /// What that shard is sent, as its cache is to know it.
    fn part_as_read(
        &self,
        execution: &Execution<'_>,
        streamed: &Streamed,
        facts: &Facts,
        shard: usize,
    ) -> Result<CachedRead, Reason> {
        let unknown = || Reason { code: "no-catalog", text: "the shard is not known yet".into() };
        let (asked, part) = execution.facts.single().zip(facts.single()).ok_or_else(unknown)?;
        let catalog = self.db.shard_caches.get(shard).ok_or_else(unknown)?.catalog.current();
        let bound = execution.bind.map(|(_, bind)| Bound {
            types: execution.types,
            formats: &bind.formats,
            values: &bind.values,
            result_formats: &bind.result_formats,
        });
        self.seen_by(&self.role_on_shard(shard), &catalog, &streamed.sql, |session| {
            let input = Input {
                facts: execution.facts,
                text: &streamed.sql,
                session,
                catalog: (catalog.version > 0).then_some(&*catalog),
                database: &self.db.config,
                cache: &self.db.cache_config,
                fanout: &self.db.fanout,
                shards: None,
                bound: bound.as_ref(),
                coordinator: None,
                unstreamed: None,
                partitions: None,
            };
            part_is_cacheable(&input, asked, part)
        })
    }

    /// Whether the shards' parts of an answer may be kept, for people.
    pub(super) fn cached_by_shard(&self, execution: &Execution<'_>, streamed: &Streamed) -> String {
        let part = self.facts_of_part(streamed);
        let judged = streamed.shards.iter().map(|&shard| self.part_as_read(execution, streamed, &part, shard));
        match judged.collect::<Result<Vec<_>, _>>() {
            Ok(_) => "yes: a write to one shard has that one asked again".to_owned(),
            Err(reason) => format!("no: {}", reason.text),
        }
    }

    /// What is in memory of each, and good.
    async fn recall(&self, streamed: &Streamed, asked: &[Option<Question>]) -> Vec<Option<AtHand>> {
        let recalls = streamed.shards.iter().zip(asked).map(async |(&shard, asked)| {
            let (known, Question { key, read }) = (self.db.shard_caches.get(shard)?, asked.as_ref()?);
            known.cache.recall_strict(key, &read.relations, read.catalog_version).await
        });
        join_all(recalls).await
    }

    /// Whether all of them are still good: then there was a moment at which all of them were, which is all that the latch could give. One alone
    /// has such a moment anyway.
    async fn all_hold(&self, streamed: &Streamed, asked: &[Option<Question>], at_hand: &[Option<AtHand>]) -> bool {
        if at_hand.len() == 1 {
            return true;
        }
        let looks = streamed.shards.iter().zip(asked).zip(at_hand);
        let looks =
            looks.map(async |((&shard, asked), at_hand)| self.holds(shard, asked.as_ref(), at_hand.as_ref()).await);
        join_all(looks).await.into_iter().all(|holds| holds)
    }

    async fn holds(&self, shard: usize, asked: Option<&Question>, at_hand: Option<&AtHand>) -> bool {
        let (Some(known), Some(asked), Some(at_hand)) = (self.db.shard_caches.get(shard), asked, at_hand) else {
            return false;
        };
        let Question { key, read } = asked;
        known.cache.still_holds(key, &read.relations, read.catalog_version, at_hand).await
    }

    fn replays(&self, streamed: &Streamed, at_hand: &[Option<AtHand>]) -> Vec<Part> {
        let known = streamed.shards.iter().filter_map(|&shard| self.db.shard_caches.get(shard));
        known
            .zip(at_hand.iter().flatten())
            .map(|(known, at_hand)| replay(&known.cache.serve_at_hand(at_hand)))
            .collect()
    }

    /// A connection to each shard whose part is not at hand, in the order of shards: so that two statements cannot wait for each other.
    async fn lease_missing(
        &mut self,
        streamed: &Streamed,
        at_hand: &[Option<AtHand>],
    ) -> Result<Vec<Option<LeasedLeg>>, Error> {
        let mut leased = Vec::with_capacity(at_hand.len());
        for (&shard, at_hand) in streamed.shards.iter().zip(at_hand) {
            leased.push(match at_hand {
                Some(_) => None,
                None => Some(self.lease_leg(Target::Shard(shard)).await?),
            });
        }
        Ok(leased)
    }

    /// Where each part comes from. A turn to fill is taken before the snapshot is.
    async fn sources(
        &self,
        streamed: &Streamed,
        asked: &[Option<Question>],
        at_hand: Vec<Option<AtHand>>,
        recalls: bool,
    ) -> Vec<Source> {
        let looks = streamed.shards.iter().zip(asked).zip(at_hand);
        let looks =
            looks.map(async |((&shard, asked), at_hand)| match (at_hand, self.db.shard_caches.get(shard), asked) {
                (Some(found), ..) => Source::Cache(found),
                (None, Some(known), Some(Question { key, read })) => look_up(known, key, read, recalls).await,
                _ => Source::Shard(None),
            });
        join_all(looks).await
    }

    fn part_from(
        &self,
        shard: usize,
        source: Source,
        leg: Option<LeasedLeg>,
        asked: Option<&Question>,
        limit: usize,
    ) -> Option<Part> {
        match source {
            Source::Cache(at_hand) => {
                leg.into_iter().for_each(give_back);
                let known = self.db.shard_caches.get(shard)?;
                Some(replay(&known.cache.serve_at_hand(&at_hand)))
            }
            Source::Shard(ticket) => {
                let filling = ticket.zip(asked).map(|(ticket, asked)| Filling::new(ticket, &asked.read, limit));
                Some(Part::Fresh(leg?, filling.map(Box::new)))
            }
        }
    }

    /// Gives the legs of a statement back, and keeps what those gave that ended well.
    pub(super) async fn end_parts(&self, parts: Vec<Part>, broken: &[usize], given: &[Given], has_succeeded: bool) {
        let mut fillings = Vec::new();
        for (at, part) in parts.into_iter().enumerate() {
            let Part::Fresh(mut leg, filling) = part else { continue };
            if broken.contains(&at) {
                leg.attached.lease.discard();
                continue;
            }
            leg.attached.lease.server().hand_back();
            leg.attached.lease.release();
            fillings.extend(filling.filter(|_| has_succeeded).zip(given.get(at).copied()));
        }
        join_all(fillings.into_iter().map(|(filling, given)| filling.store(given))).await;
    }
}

/// Where one shard's part comes from.
enum Source {
    /// The shard; with a turn to keep what it gives.
    Shard(Option<FillTicket>),
    /// Its cache.
    Cache(AtHand),
}

async fn look_up(known: &ShardCache, key: &Key, read: &CachedRead, recalls: bool) -> Source {
    let (relations, version) = (&read.relations, read.catalog_version);
    match known.cache.lookup_strict(key, relations, version).await {
        Lookup::Hit { .. } if recalls => match known.cache.recall_strict(key, relations, version).await {
            Some(found) => Source::Cache(found),
            None => Source::Shard(None),
        },
        Lookup::Fill(ticket) => Source::Shard(Some(ticket)),
        Lookup::Hit { .. } | Lookup::Bypass(_) | Lookup::Failed(_) => Source::Shard(None),
    }
}

/// A part that is replayed, and whom to ask whether it still may be.
struct Kept {
    cache: Arc<ResultCache>,
    key: Key,
    read: CachedRead,
    at_hand: AtHand,
}

/// Asks of all of them whether they may be served at one moment; `None` if there are none.
fn holds(kept: Vec<Kept>) -> Option<Holds> {
    let kept: Arc<[Kept]> = Some(kept).filter(|kept| !kept.is_empty())?.into();
    let ask = move || -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let kept = Arc::clone(&kept);
        Box::pin(async move {
            for Kept { cache, key, read, at_hand } in kept.iter() {
                if !cache.still_holds(key, &read.relations, read.catalog_version, at_hand).await {
                    return false;
                }
            }
            true
        })
    };
    Some(Box::new(ask))
}

fn replay(entry: &Entry) -> Part {
    Part::Kept(Replay::new(entry.bytes.clone(), entry.row_description_len))
}

/// Gives a leg back that was not used.
fn give_back(mut leg: LeasedLeg) {
    leg.attached.lease.server().hand_back();
    leg.attached.lease.release();
}
