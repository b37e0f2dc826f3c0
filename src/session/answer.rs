//! Carrying out what pgherd answers itself: transactions without a server, hits, fills, replica reads, fan-out, EXPLAIN (ROUTE).

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::context::Target;
use super::fan_out::Ran;
use super::late_begin::release;
use super::planned::{Execution, Way};
use super::route::ROUTE_COLUMNS;
use super::{Attached, Session};
use crate::backend::server::UNKNOWN_STATEMENT;
use crate::backend::signature;
use crate::cache::{Audit, Entry, Failure, FillTicket};
use crate::error::Error;
use crate::exec::readonly::{self, Outcome, Protocol, Read};
use crate::plan::CachedRead;
use crate::sql::facts::{Class, TransactionControl};
use crate::telemetry::metrics::PlanClass;
use crate::wire::frame::Frame;
use crate::wire::writer::{self, TransactionStatus};

impl Session {
    /// Handles a simple Query in a database where plans matter.
    pub(super) async fn go_simple(
        &mut self,
        frame: &Frame,
        text: &[u8],
        facts: &super::SharedFacts,
    ) -> Result<(), Error> {
        let execution = Execution::described(facts, text, &[]);
        self.wait_for_answers().await?;
        if self.is_mid_flight() && !self.db.config.is_distributed() {
            // A pipeline without its Sync is one transaction with what follows it.
            return self.relay_simple(frame, facts, Target::Primary).await;
        }
        let way = self.way(&execution).await?;
        if let Way::Relay(target) = way {
            return self.relay_simple(frame, facts, target).await;
        }
        let class = way.class();
        match Box::pin(self.carry_out(&execution, true, way)).await? {
            Carried::Answered => {
                let status = self.status;
                writer::ready_for_query(self.out(), status);
                self.count_statement(class);
                Ok(())
            }
            Carried::Failed => Ok(()),
            Carried::Writes(target) => self.relay_simple(frame, facts, target).await,
        }
    }

    async fn relay_simple(&mut self, frame: &Frame, facts: &super::SharedFacts, target: Target) -> Result<(), Error> {
        self.flight_target = Some(target);
        let result = self.relay_query(frame, facts).await;
        self.flight_target = None;
        result
    }

    /// Executes a portal that pgherd answers itself.
    pub(super) async fn go(&mut self, execution: &Execution<'_>, described: bool, way: Way) -> Result<(), Error> {
        self.wait_for_answers().await?;
        if self.is_unheard() {
            return Ok(());
        }
        let class = way.class();
        let target = match self.carry_out(execution, described, way).await? {
            Carried::Answered => {
                self.count_statement(class);
                return Ok(());
            }
            Carried::Failed => return Ok(()),
            Carried::Writes(target) => target,
        };
        // It writes after all: Parse and Bind have been answered, so it is run as a flight of pgherd's own.
        let Some((bind, _)) = execution.bind else { return Err(Error::internal("a portal without its Bind")) };
        self.rerun_as_write(target, execution, bind, described).await
    }

    async fn carry_out(&mut self, execution: &Execution<'_>, described: bool, way: Way) -> Result<Carried, Error> {
        self.spill();
        self.has_read_aside |= self.status == TransactionStatus::InTransaction
            && matches!(way, Way::ReadOnly(_) | Way::Fill(..) | Way::Hit(..) | Way::FanOut(_) | Way::Gather(_));
        let types = Box::pin(self.types_over_servers(execution, &way)).await?;
        let execution = &Execution { types: types.as_deref().unwrap_or(execution.types), ..*execution };
        match way {
            Way::Relay(_) | Way::Resume | Way::Bind | Way::Describe(_) => {
                return Err(Error::internal("a relayed statement is not pgherd's to answer"));
            }
            Way::ReadOnly(target) => return self.read_beside(execution, described, target).await,
            Way::Fill(ticket, read) => {
                return self.read_only(execution, described, Target::Primary, Some((ticket, read))).await;
            }
            Way::Hit(entry, audit) => return self.serve_hit(execution, described, (&entry, audit)).await,
            Way::Failed(failure) => return Ok(self.share_failure(execution, &failure)),
            Way::FanOut(streamed) => {
                let message = match Box::pin(self.fan_out(execution, described, &streamed)).await? {
                    Ran::Answered => return Ok(Carried::Answered),
                    Ran::Failed(message) => message,
                    Ran::Unmergeable(unmerged) => {
                        match Box::pin(self.gather_instead(execution, described, unmerged)).await? {
                            Ok(()) => return Ok(Carried::Answered),
                            Err(message) => message,
                        }
                    }
                };
                self.fail_with(message);
                return Ok(Carried::Failed);
            }
            Way::Split(split) => return Box::pin(self.scan_split(execution, described, &split)).await,
            way @ (Way::Gather(_)
            | Way::ExplainOver(_)
            | Way::Cursor(_)
            | Way::Maintain(_)
            | Way::Scatter(_)
            | Way::InsertSelect(_)
            | Way::KeyMove(_)
            | Way::CopyIn(_)) => {
                if let Err(message) = self.ask_several(execution, described, way).await? {
                    self.fail_with(message);
                    return Ok(Carried::Failed);
                }
            }
            Way::Explain(rows) => self.answer_rows(execution, described, &rows),
            Way::Empty => {
                let out = self.out();
                if execution.bind.is_some() && described {
                    writer::no_data(out);
                }
                writer::empty_query_response(out);
            }
            Way::Begin => self.begin(execution, described),
            Way::Savepoint => {
                self.lazy_begin.push(Bytes::copy_from_slice(execution.text));
                self.answer_tag(execution, described, tag_of(execution));
            }
            Way::RollbackTo(kept) => {
                self.lazy_begin.truncate(kept);
                self.status = TransactionStatus::InTransaction;
                self.answer_tag(execution, described, "ROLLBACK");
            }
            Way::Release(at) => {
                release(&mut self.lazy_begin, at);
                self.answer_tag(execution, described, tag_of(execution));
            }
            Way::End(commit) => self.end(execution, described, commit),
            Way::EndAndChain(commit) => self.end_and_chain(execution, described, commit),
            Way::ChainEverywhere(commit, begin) => {
                if let Err(message) = Box::pin(self.chain_everywhere(execution, described, (commit, begin))).await? {
                    self.fail_with(message);
                    return Ok(Carried::Failed);
                }
            }
            Way::Everywhere => {
                if let Err(message) = Box::pin(self.control_everywhere(execution)).await? {
                    self.fail_with(message);
                    return Ok(Carried::Failed);
                }
                self.answer_tag(execution, described, tag_of(execution));
            }
            Way::Fail(message) => {
                self.fail_with(message);
                return Ok(Carried::Failed);
            }
            Way::EndEverywhere(commit) => match Box::pin(self.end_everywhere(commit)).await? {
                Ok(committed) => self.answer_tag(execution, described, if committed { "COMMIT" } else { "ROLLBACK" }),
                Err(message) => {
                    self.fail_with(message);
                    return Ok(Carried::Failed);
                }
            },
        }
        if self.suspended.is_some() {
            Box::pin(self.portals_after(execution.facts)).await;
        }
        Ok(Carried::Answered)
    }

    /// What several servers answer together. The inner error is the ErrorResponse that the client is to get.
    async fn ask_several(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        way: Way,
    ) -> Result<Result<(), Bytes>, Error> {
        match way {
            Way::Gather(gathered) => {
                let term = self.term();
                Box::pin(self.gather(execution, described, &gathered, term)).await
            }
            Way::ExplainOver(explained) => Box::pin(self.explain_over(execution, described, &explained)).await,
            Way::Cursor(gathered) => Box::pin(self.declare_cursor(execution, described, &gathered)).await,
            Way::Maintain(maintained) => Box::pin(self.maintain(execution, described, &maintained)).await,
            Way::Scatter(scattered) => Box::pin(self.scatter(execution, described, &scattered)).await,
            Way::InsertSelect(plan) => Box::pin(self.insert_select(execution, described, &plan)).await,
            Way::KeyMove(moved) => Box::pin(self.move_rows(execution, described, &moved)).await,
            Way::CopyIn(copied) => Box::pin(self.copy_in(execution, described, &copied)).await,
            _ => Err(Error::internal("it is not for several servers")),
        }
    }

    /// Notes a transaction that no server knows of yet.
    fn begin(&mut self, execution: &Execution<'_>, described: bool) {
        let control = execution.facts.single().map(|statement| statement.class);
        self.isolated = control == Some(Class::Transaction(TransactionControl::BeginOther));
        self.read_only = control == Some(Class::Transaction(TransactionControl::BeginReadOnly));
        self.has_read_aside = false;
        // A transaction begins without portals.
        self.suspended = None;
        self.lazy_begin = vec![Bytes::copy_from_slice(execution.text)];
        self.status = TransactionStatus::InTransaction;
        let starts = execution.text.trim_ascii_start().get(..5).is_some_and(|word| word.eq_ignore_ascii_case(b"start"));
        self.answer_tag(execution, described, if starts { "START TRANSACTION" } else { "BEGIN" });
    }

    /// Ends a transaction that no server knew of.
    fn end(&mut self, execution: &Execution<'_>, described: bool, commit: bool) {
        self.transaction_is_over();
        self.status = TransactionStatus::Idle;
        self.answer_tag(execution, described, if commit { "COMMIT" } else { "ROLLBACK" });
    }

    pub(super) fn answer_tag(&mut self, execution: &Execution<'_>, described: bool, tag: &str) {
        let out = self.out();
        if execution.bind.is_some() && described {
            writer::no_data(out);
        }
        writer::command_complete(out, tag);
    }

    fn answer_rows(&mut self, execution: &Execution<'_>, described: bool, rows: &[(String, String)]) {
        let out = self.out();
        if execution.bind.is_none() || described {
            writer::text_row_description(out, &ROUTE_COLUMNS);
        }
        for (property, value) in rows {
            writer::data_row(out, [Some(property.as_bytes()), Some(value.as_bytes())].into_iter());
        }
        writer::command_complete(out, "EXPLAIN");
    }

    /// Runs a read on a server connection of its own, in a READ ONLY transaction; keeps the answer if there is a ticket.
    async fn read_only(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        target: Target,
        fill: Option<(FillTicket, Arc<CachedRead>)>,
    ) -> Result<Carried, Error> {
        let told = self.told_before(execution);
        let protocol = match execution.bind {
            None => Protocol::Simple,
            Some((bind, _)) => Protocol::Extended {
                types: execution.types,
                bind: bind.body(),
                described,
                told: told.as_deref(),
                unanswered: execution.unanswered,
            },
        };
        let undo = self.db.catalog.current().version > 0 && self.trusts_user_code(execution.facts);
        let read = Read { text: execution.text, protocol, undo };
        let Some((ticket, kept)) = fill else {
            let outcome = self.run_aside(target, read, None).await?.0;
            return self.end_of_read(execution, target, outcome);
        };
        let cancels = self.cancel.slot.fired();
        if kept.from_replica && ticket.may_ask_replica() {
            let answer = Box::pin(self.answer_of_replica(read, &ticket, cancels)).await;
            ticket.replica_answered(matches!(answer, Ok(Some(_))));
            match answer {
                Ok(None) => {}
                Ok(Some((captured, took))) => {
                    self.out().extend_from_slice(execution.unanswered);
                    return match self.keep(execution, described, (ticket, &kept), captured, took).await {
                        Err(error) if signature::is_changed(&error) => {
                            let bound = Execution { unanswered: b"", ..*execution };
                            Box::pin(self.read_primary_instead(&bound, described)).await
                        }
                        kept => kept.map(|()| Carried::Answered),
                    };
                }
                Err(error) => return self.give_up_fill(execution, described, ticket, error).await,
            }
        }
        let (outcome, took) = match self.run_aside(target, read, Some(self.db.cache_config.max_entry_bytes)).await {
            Ok(done) => done,
            Err(error) => return self.give_up_fill(execution, described, ticket, error).await,
        };
        match outcome {
            Outcome::Done(Some(captured)) => self.keep(execution, described, (ticket, &kept), captured, took).await?,
            Outcome::Done(None) => ticket.uncacheable("too large, or with notices"),
            outcome => {
                match &outcome {
                    Outcome::Writes => ticket.uncacheable("it writes"),
                    // Whoever has it cancelled does so for itself alone.
                    Outcome::Failed { message, came_to, .. } if self.cancel.slot.fired() == cancels => {
                        ticket.fail(Failure { message: message.clone(), parsed: came_to.0, bound: came_to.1 });
                    }
                    _ => drop(ticket),
                }
                return self.end_of_read(execution, target, outcome);
            }
        }
        Ok(Carried::Answered)
    }

    /// Reads on a server connection of its own, in a READ ONLY transaction.
    async fn read_beside(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        target: Target,
    ) -> Result<Carried, Error> {
        match self.read_only(execution, described, target, None).await {
            Err(error) if signature::is_changed(&error) && matches!(target, Target::Replica(_)) => {
                Box::pin(self.read_primary_instead(execution, described)).await
            }
            read => read,
        }
    }

    /// Answers from the cache, and has the answer checked if that is asked for.
    async fn serve_hit(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        (entry, audit): (&Entry, Option<Audit>),
    ) -> Result<Carried, Error> {
        match self.serve_entry(execution, described, entry).await {
            Err(error) if signature::is_changed(&error) => {
                return Box::pin(self.read_primary_instead(execution, described)).await;
            }
            served => served?,
        }
        if let Some(audit) = audit {
            Box::pin(self.check_hit(execution, audit)).await?;
        }
        Ok(Carried::Answered)
    }

    /// A copy may be older than what the client was told of: then its rows are the primary's to give, or to refuse.
    async fn read_primary_instead(&mut self, execution: &Execution<'_>, described: bool) -> Result<Carried, Error> {
        self.read_only(execution, described, Target::Primary, None).await
    }

    /// Runs a read on a borrowed server connection; how it ended, when it began and how long it took.
    async fn run_aside(
        &mut self,
        target: Target,
        read: Read<'_>,
        capture: Option<usize>,
    ) -> Result<(Outcome, (Instant, Duration)), Error> {
        let mut borrowed = self.borrow_server(target).await?;
        let started = Instant::now();
        let running = readonly::run(borrowed.lease.server(), read, &mut self.client, capture);
        let outcome = match tokio::time::timeout(self.db.config.olap_timeout, running).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.cancel.slot.fire().await;
                Err(super::failure::too_slow("database.olap_timeout"))
            }
        };
        let cost = started.elapsed();
        if outcome.is_err() {
            borrowed.lease.server().mark_broken();
        }
        self.give_back(borrowed).await;
        Ok((outcome?, (started, cost)))
    }

    /// What is left of a read beside the transaction which has failed, and whose error has been told.
    pub(super) fn failed_read(&mut self, execution: &Execution<'_>) -> Carried {
        if self.failed_aside(execution.bind.is_none()) { Carried::Failed } else { Carried::Answered }
    }

    fn end_of_read(&mut self, execution: &Execution<'_>, target: Target, outcome: Outcome) -> Result<Carried, Error> {
        match outcome {
            Outcome::Writes => {
                self.db.note_unseen_write(execution.facts.fingerprint);
                return Ok(Carried::Writes(if matches!(target, Target::Replica(_)) {
                    Target::Primary
                } else {
                    target
                }));
            }
            Outcome::Failed { parsed, .. } => {
                if !parsed && let Some((_, bind)) = execution.bind {
                    self.forget_statement(bind.statement);
                }
                return Ok(self.failed_read(execution));
            }
            Outcome::Changed => return Err(signature::changed()),
            Outcome::Done(_) => {}
        }
        Ok(Carried::Answered)
    }

    /// A server connection of that target for one read, beside whatever the session holds.
    pub(super) async fn borrow_server(&mut self, target: Target) -> Result<Attached, Error> {
        let settings = self.settings_beside().await?;
        let mut lease = self.lease_with(target, &settings).await?;
        self.cancel.slot.aim_at(Arc::clone(&lease.server().cancel_target));
        Ok(Attached { lease, target })
    }

    /// Gives a borrowed server connection back, once no cancel is on its way to it.
    pub(super) async fn give_back(&mut self, borrowed: Attached) {
        self.untie_cancel().await;
        borrowed.lease.release();
        if let Some(attached) = &mut self.server {
            self.cancel.slot.aim_at(Arc::clone(&attached.lease.server().cancel_target));
        }
        self.note_whereabouts();
    }

    /// Runs a statement that turned out to write on the primary, Parse and Bind hidden from the client who has their answers.
    async fn rerun_as_write(
        &mut self,
        target: Target,
        execution: &Execution<'_>,
        bind: &Frame,
        described: bool,
    ) -> Result<(), Error> {
        use crate::backend::expect::{About, Expect};
        self.attach(target).await?;
        self.note_execution(execution.facts).await?;
        self.before_commit().await?;
        let hidden = !execution.unanswered.starts_with(b"1");
        let parsed = execution.bind.map(|(_, bind)| bind.statement).filter(|_| !hidden);
        let client_name = parsed.and_then(|name| Some((Bytes::copy_from_slice(name), self.statement(name)?.serial)));
        let told = self.told_before(execution);
        let server = self.attach(target).await?;
        server.unnamed = Some(UNKNOWN_STATEMENT);
        let mut rest = crate::wire::frame::Body::new(bind.body());
        let _ = (rest.cstr(), rest.cstr());
        writer::parse(&mut server.outbuf, b"", execution.text, execution.types);
        server.expects.push(Expect::Parse { hidden, statement: None, client_name });
        writer::message(&mut server.outbuf, b'B', |out| {
            out.extend_from_slice(b"\0\0");
            out.extend_from_slice(rest.rest());
        });
        let bound = if execution.unanswered.is_empty() { Expect::HiddenBind } else { Expect::Bind(About::default()) };
        server.expects.push(bound);
        if described {
            writer::describe(&mut server.outbuf, b'P', b"");
            server.expects.push(Expect::Describe(told, About::default()));
        }
        writer::execute(&mut server.outbuf, b"", execution.max_rows);
        server.expects.push(Expect::Execute);
        Ok(())
    }

    /// Counts a statement that has ended, and logs it if it took long.
    pub(super) fn note_statement(&self, class: PlanClass) {
        self.note_time(class, self.since.elapsed());
    }

    /// As [`Session::note_statement`], with the time that it took.
    pub(super) fn note_time(&self, class: PlanClass, took: std::time::Duration) {
        self.db.metrics.statement(class, took);
        if self.db.slow_statement.is_some_and(|limit| took >= limit) {
            let (user, database) = (&self.user.name, &self.db.config.name);
            tracing::warn!(user, database, plan = class.label(), took_ms = took.as_millis() as u64, "slow statement");
        }
    }

    /// Counts a statement that has ended.
    pub(super) fn count_statement(&mut self, class: PlanClass) {
        self.note_statement(class);
    }
}

/// The command tag of a statement about a savepoint.
fn tag_of(execution: &Execution<'_>) -> &'static str {
    match execution.facts.single().map(|statement| statement.class) {
        Some(Class::Transaction(TransactionControl::Release)) => "RELEASE",
        Some(Class::Transaction(TransactionControl::RollbackTo)) => "ROLLBACK",
        Some(Class::Transaction(TransactionControl::SetAllConstraints)) => "SET CONSTRAINTS",
        _ => "SAVEPOINT",
    }
}

/// Whether a statement has been answered.
pub(super) enum Carried {
    /// It has.
    Answered,
    /// It failed, and the client knows.
    Failed,
    /// It writes, or is not split after all, and nothing of it has been run.
    Writes(Target),
}
