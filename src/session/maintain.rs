//! VACUUM, ANALYZE and their like on several servers, for this session: each does it by itself, and the client hears of all of them.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use tokio_util::sync::CancellationToken;

use super::Session;
use super::context::Target;
use super::fan_out::{LeasedLeg, release};
use super::planned::{Execution, Way};
use super::scatter::{halting, while_awaited};
use crate::backend::server::ServerConn;
use crate::error::Error;
use crate::exec::scatter::{self, Failure, Said, with_detail};
use crate::plan::Maintained;
use crate::wire::backend::ErrorFields;
use crate::wire::frame::HEADER_LEN;
use crate::wire::writer::{self, TransactionStatus};

/// What became of it on one server.
struct Outcome {
    place: String,
    said: Result<Said, Error>,
}

/// How a server's part ended, as far as the client is told.
enum Told {
    Done,
    /// The server's ErrorResponse, and how far it came.
    Refused(Bytes, usize),
    /// Why it was not heard to the end.
    Lost(Error),
}

impl Session {
    /// How maintenance over several servers is carried out: outside of a transaction, since each server does it by itself.
    pub(super) fn way_of_maintenance(&self, maintained: Arc<Maintained>) -> Result<Way, Error> {
        if self.status == TransactionStatus::Idle {
            return self.way_of_fan_out(Way::Maintain(maintained));
        }
        if maintained.only_alone {
            // PostgreSQL says that it cannot run inside a transaction block before it looks for any table.
            return Ok(Way::Relay(self.default_target()));
        }
        Err(Error::refused("maintenance of several servers' tables in a transaction")
            .hint("Send it outside of a transaction: each server then does it by itself."))
    }

    /// Runs it on all of its servers, whatever becomes of it on one of them. The inner error is the ErrorResponse that the client is to get.
    pub(super) async fn maintain(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        maintained: &Maintained,
    ) -> Result<Result<(), Bytes>, Error> {
        let Ok(text) = std::str::from_utf8(execution.text) else {
            return Err(Error::refused("a statement that is not UTF-8"));
        };
        let (mut legs, mut outcomes) = Box::pin(self.legs_of_maintenance(maintained)).await?;
        self.db.metrics.fanout_legs.inc_by(legs.len() as u64);
        let work = self.begin_reading().await;
        let limit = self.db.config.pool.query_timeout;
        let own = self.server.as_mut().filter(|it| it.target == Target::Primary && maintained.on_primary);
        let own_place = own.as_ref().map(|attached| self.db.place_of(attached.target));
        let mut servers: Vec<&mut ServerConn> = own.into_iter().map(|attached| attached.lease.server()).collect();
        servers.extend(legs.iter_mut().map(|leg| leg.attached.lease.server()));
        let halt = halting(servers.iter().map(|server| Arc::clone(&server.cancel_target)).collect());
        let running = async { Ok(scatter::apart(servers, text, &work, halt()).await) };
        let said = bounded(limit, &work, while_awaited(&mut self.client, &work, running)).await;
        self.cancel.slot.work_is_over();
        self.aim_cancel();
        let places = own_place.into_iter().chain(legs.iter().map(|leg| self.db.place_of(leg.attached.target)));
        let places: Vec<String> = places.collect();
        let broken: Vec<usize> = (0..legs.len()).filter(|&at| legs[at].attached.lease.server().is_broken()).collect();
        release(legs, &broken);
        let said = match said {
            Ok(said) => said,
            Err(Failure::Own(error)) => return Err(error),
            Err(Failure::Server(message, _)) => return Ok(Err(message)),
        };
        outcomes.extend(places.into_iter().zip(said).map(|(place, said)| Outcome { place, said }));
        if self.held_server().is_some_and(|server| server.is_broken()) {
            return Err(super::failure::server_gone());
        }
        Ok(self.tell_of_maintenance(execution, described, outcomes))
    }

    /// Connections to all of its servers but the one that the session holds already; who cannot be reached is at fault alone.
    async fn legs_of_maintenance(&mut self, maintained: &Maintained) -> Result<(Vec<LeasedLeg>, Vec<Outcome>), Error> {
        self.come_to_rest().await?;
        let holds_primary = self.server.as_ref().is_some_and(|attached| attached.target == Target::Primary);
        let primary = (maintained.on_primary && !holds_primary).then_some(Target::Primary);
        let targets = primary.into_iter().chain(maintained.shards.iter().map(|&shard| Target::Shard(shard)));
        let (mut legs, mut outcomes) = (Vec::new(), Vec::new());
        for target in targets {
            match self.lease_leg(target).await {
                Ok(leg) => legs.push(leg),
                Err(error) if self.client_is_gone() => return Err(error),
                Err(error) => outcomes.push(Outcome { place: self.db.place_of(target), said: Err(error) }),
            }
        }
        Ok((legs, outcomes))
    }

    fn client_is_gone(&mut self) -> bool {
        std::future::poll_fn(|cx| self.client.poll_gone_client(cx)).now_or_never().is_some()
    }

    /// Answers with the servers' own tag, or with the first error and what became of it elsewhere.
    fn tell_of_maintenance(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        outcomes: Vec<Outcome>,
    ) -> Result<(), Bytes> {
        let mut notices: Vec<Bytes> = Vec::new();
        let mut tag = String::new();
        let mut told: Vec<(String, Told)> = Vec::new();
        for Outcome { place, said } in outcomes {
            let ended = match said {
                Ok(said) => {
                    // What one server has said already is no news from another.
                    said.notices.into_iter().for_each(|notice| {
                        if !notices.contains(&notice) {
                            notices.push(notice);
                        }
                    });
                    match said.error {
                        Some(frame) => Told::Refused(frame.bytes, said.completed),
                        None => {
                            tag = said.tag;
                            Told::Done
                        }
                    }
                }
                Err(error) => Told::Lost(error),
            };
            told.push((place, ended));
        }
        let failed = told.iter().find(|(_, ended)| !matches!(ended, Told::Done));
        let completed = match failed {
            Some((_, Told::Refused(_, completed))) => *completed,
            Some(_) => 0,
            None => 2,
        };
        self.tell_as_far(execution, completed);
        let out = self.out();
        if failed.is_none() && described && execution.bind.is_some() {
            writer::no_data(out);
        }
        notices.iter().for_each(|notice| out.extend_from_slice(notice));
        let Some((_, failed)) = failed else {
            writer::command_complete(out, &tag);
            return Ok(());
        };
        let detail = by_server(&told);
        Err(match failed {
            Told::Refused(message, _) => with_detail(message.get(HEADER_LEN..).unwrap_or_default(), &detail),
            Told::Lost(error) => {
                let mut message = BytesMut::new();
                let own = Error::new(error.kind(), error.sqlstate(), error.message()).detail(detail);
                let own = match error.hint_text() {
                    Some(hint) => own.hint(hint),
                    None => own,
                };
                writer::error_response(&mut message, &own);
                message.freeze()
            }
            Told::Done => Bytes::new(),
        })
    }
}

/// A line for each server where it failed, and one for the others.
fn by_server(told: &[(String, Told)]) -> String {
    let mut lines = Vec::new();
    for (place, ended) in told {
        let message = match ended {
            Told::Done => continue,
            Told::Refused(message, _) => {
                let fields = ErrorFields::parse(message.get(HEADER_LEN..).unwrap_or_default());
                fields.map_or_else(|_| "an error".to_owned(), |fields| fields.message().to_owned())
            }
            Told::Lost(error) => error.message().to_owned(),
        };
        lines.push(format!("Failed on {place}: {message}"));
    }
    let done: Vec<&str> =
        told.iter().filter(|(_, ended)| matches!(ended, Told::Done)).map(|(place, _)| place.as_str()).collect();
    lines.push(match done.is_empty() {
        true => "Done on no server.".to_owned(),
        false => format!("Done on {}.", done.join(", ")),
    });
    lines.join("\n")
}

/// Runs something to its end; when it takes too long, it is cancelled first.
async fn bounded<T>(
    limit: Option<std::time::Duration>,
    work: &CancellationToken,
    running: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut running = std::pin::pin!(running);
    let Some(limit) = limit else { return running.await };
    match tokio::time::timeout(limit, &mut running).await {
        Ok(done) => done,
        Err(_) => {
            work.cancel();
            let _ = running.await;
            Err(Failure::Own(super::failure::too_slow("pool.query_timeout")))
        }
    }
}
