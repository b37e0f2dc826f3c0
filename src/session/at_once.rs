//! A question that was answered from the cache before, asked once more: answered from where its bytes lie, without a plan.
//!
//! Which key a question has, and what its answer depends on, follows from its bytes, the session's settings and role, and the
//! catalog: what [`super::memo`] holds for. Whether the answer may still be served is the cache's to say each time.

use std::sync::Arc;

use bytes::Buf;
use tokio::time::Instant;

use super::answers::{Answer, Question};
use super::cached::note_or_check;
use super::express::{Request, SYNC_LEN};
use super::planned::Execution;
use super::{Prepared, Session};
use crate::cache::{AtOnce, Entry, Key};
use crate::config::model::PoolMode;
use crate::error::Error;
use crate::plan::CachedRead;
use crate::telemetry::metrics::PlanClass;
use crate::wire::frame::{Body, HEADER_LEN};
use crate::wire::frontend;
use crate::wire::writer::{self, TransactionStatus};

const PARSED: &[u8] = b"1\0\0\0\x04";
const BOUND: &[u8] = b"2\0\0\0\x04";

/// An answer, and the statement that a flight's Parse makes, or its Bind names.
pub(super) type Known = (Arc<Answer>, Option<Arc<Prepared>>);

impl Session {
    /// Remembers a question that the cache has just answered, if this session is as any other of its kind.
    pub(super) fn note_answer(&mut self, execution: &Execution<'_>, key: &Key, read: &Arc<CachedRead>) {
        if !self.is_like_any() {
            return;
        }
        let bind = execution.bind.map(|(frame, _)| behind_names(frame.body()));
        let question = Question { text: execution.text, types: execution.types, bind: bind.unwrap_or_default() };
        let answer = Answer { key: key.clone(), read: Arc::clone(read), facts: Arc::clone(execution.facts) };
        self.turn_to_memory(read.catalog_version);
        self.memo.note_answer(&question, answer);
    }

    /// Whether plans for this session are those for any other with its role and settings: it is in no transaction, above all.
    fn is_like_any(&self) -> bool {
        self.server.is_none()
            && self.status == TransactionStatus::Idle
            && self.lazy_begin.is_empty()
            && !self.pins.any()
            && self.suspended.is_none()
            && self.mode != PoolMode::Session
            && !self.settings.is_uncertain()
            && !self.plans_look_beyond_facts()
    }

    /// The request at the front of what the client has sent, with what was answered from the cache before to its like.
    pub(super) fn answered_before(&mut self) -> Option<Box<(Request, Known)>> {
        if self.client.inbuf.is_empty() || self.db.cache.is_none() || !self.is_like_any() {
            return None;
        }
        self.turn_to_memory(self.db.catalog.version());
        if !self.memo.has_answers() {
            return None;
        }
        let request = self.request()?;
        let known = self.known_answer(&request)?;
        let facts = &known.0.facts;
        let is_sure = !self.db.writes_unseen(facts.fingerprint) && !self.db.may_run_unseen(facts);
        is_sure.then(|| Box::new((request, known)))
    }

    /// Gives that answer, if memory still has it and it may be served; false is that the usual way is to be gone.
    ///
    /// # Errors
    /// The client is gone.
    pub(super) async fn answer_at_once(&mut self, at_hand: Box<(Request, Known)>) -> Result<bool, Error> {
        let Some(cache) = self.db.cache.clone() else { return Ok(false) };
        let (request, (answer, prepared)) = *at_hand;
        let since = Instant::now();
        let (key, relations, version) = (&answer.key, &answer.read.relations, answer.read.catalog_version);
        let entry = match cache.at_once(key, relations, version) {
            AtOnce::Hit(entry) => entry,
            AtOnce::Ask(held) => match Box::pin(cache.confirm_at_once(key, relations, version, held)).await {
                Some(entry) => entry,
                None => return Ok(false),
            },
            AtOnce::No => return Ok(false),
        };
        if let (Request::Flight { parse_end: 0, is_described: false, .. }, Some(prepared)) = (&request, &prepared)
            && note_or_check(&prepared.told, entry.row_description(), false).is_err()
        {
            return Ok(false);
        }
        self.since = since;
        self.timed_out = false;
        self.give(&request, prepared, &entry).await?;
        self.note_statement(PlanClass::Cached);
        Ok(true)
    }

    async fn give(&mut self, request: &Request, prepared: Option<Arc<Prepared>>, entry: &Entry) -> Result<(), Error> {
        let (end, is_described) = match *request {
            Request::Query { end } => {
                self.in_extended = false;
                self.unnamed = None;
                (end, true)
            }
            Request::Flight { parse_end, is_described, end, .. } => {
                self.in_extended = true;
                let is_parsed = parse_end > 0;
                match prepared.as_ref().map(|prepared| &prepared.told) {
                    Some(told) if is_described => note_or_check(told, entry.row_description(), true)?,
                    Some(told) if is_parsed => told.forget_rows(),
                    _ => {}
                }
                if is_parsed {
                    self.unnamed = prepared;
                }
                let out = self.out();
                out.extend_from_slice(if is_parsed { PARSED } else { b"" });
                out.extend_from_slice(BOUND);
                (end, is_described)
            }
        };
        self.client.inbuf.advance(end);
        self.give_entry(entry, is_described).await?;
        writer::ready_for_query(self.out(), TransactionStatus::Idle);
        Ok(())
    }

    /// What is known of the request's question, and the statement that its Parse makes, if it has one.
    fn known_answer(&mut self, request: &Request) -> Option<Known> {
        match *request {
            Request::Query { end } => {
                let text = frontend::query(self.client.inbuf.get(HEADER_LEN..end)?).ok()?;
                Some((self.memo.answer(&Question { text, types: &[], bind: b"" })?, None))
            }
            Request::Flight { parse_end, bind_end, end, .. } => {
                if self.client.inbuf.get(end - SYNC_LEN - 4..end - SYNC_LEN) != Some(&[0; 4]) {
                    // A row limit.
                    return None;
                }
                if parse_end == 0 {
                    let prepared = self.prepared_before(0..bind_end)?;
                    if prepared.identity.as_ref().is_some_and(|identity| identity.used_under().is_some()) {
                        return None;
                    }
                    let bind = behind_names(self.client.inbuf.get(HEADER_LEN..bind_end)?);
                    let types = prepared.known_types();
                    let answer = self.memo.answer(&Question { text: &prepared.text, types: &types, bind })?;
                    return Some((answer, Some(prepared)));
                }
                let bind = behind_names(self.client.inbuf.get(parse_end + HEADER_LEN..bind_end)?);
                let parse = frontend::parse(self.client.inbuf.get(HEADER_LEN..parse_end)?).ok()?;
                let answer = self.memo.answer(&Question { text: parse.text, types: &parse.types, bind })?;
                Some((answer, Some(self.parsed_now(parse_end)?)))
            }
        }
    }
}

/// What follows portal and statement name in a Bind's body.
fn behind_names(bind: &[u8]) -> &[u8] {
    let mut body = Body::new(bind);
    let _ = (body.cstr(), body.cstr());
    body.rest()
}
