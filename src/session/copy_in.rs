//! `COPY ... FROM STDIN` over several shards, for this session: the client's data is read here, and no faster than the shards take it.

use std::future::poll_fn;

use bytes::{Buf, Bytes, BytesMut};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::context::Target;
use super::planned::Execution;
use super::scatter::take_turn;
use super::span::parts;
use crate::backend::server::ServerConn;
use crate::error::{Error, ErrorKind};
use crate::exec::copy_in::Spread;
use crate::exec::relay::{self, ClientSide, Event};
use crate::exec::scatter::Failure;
use crate::limits;
use crate::plan::distribute::CopiedIn;
use crate::wire::frame::{self, HEADER_LEN};
use crate::wire::frontend;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

impl Session {
    /// Copies the client's rows to their shards. The inner error is the ErrorResponse that the client is to get.
    pub(super) async fn copy_in(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        plan: &CopiedIn,
    ) -> Result<Result<(), Bytes>, Error> {
        let is_own = self.status == TransactionStatus::Idle;
        if is_own {
            self.lazy_begin = vec![Bytes::from_static(b"BEGIN")];
            self.status = TransactionStatus::InTransaction;
        }
        if execution.bind.is_some() && described {
            writer::no_data(self.out());
        }
        let copied = Box::pin(self.copy_within(execution, plan)).await;
        let ended = match is_own {
            true => Box::pin(self.end_everywhere(copied.is_ok())).await?,
            false => Ok(false),
        };
        match (copied, ended) {
            (Ok(count), Ok(_)) => {
                writer::command_complete(self.out(), &format!("COPY {count}"));
                Ok(Ok(()))
            }
            (Ok(_), Err(message)) | (Err(Failure::Server(message, _)), _) => Ok(Err(message)),
            (Err(Failure::Own(error)), _) => Err(error),
        }
    }

    async fn copy_within(&mut self, execution: &Execution<'_>, plan: &CopiedIn) -> Result<u64, Failure> {
        self.assemble((0..plan.shards).map(Target::Shard)).await.map_err(Failure::Own)?;
        self.note_writes_on_shards(0..plan.shards, execution.facts).map_err(Failure::Own)?;
        self.written = true;
        if let Some(attached) = &mut self.server {
            attached.lease.server().spill(&mut self.client.outbuf);
        }
        let work = CancellationToken::new();
        self.untie_cancel().await;
        self.cancel.slot.aim_at_work(work.clone());
        let mut all: Vec<(usize, &mut ServerConn)> = parts(&mut self.server, &mut self.span)
            .into_iter()
            .filter(|part| part.at > 0)
            .map(|part| (part.at, part.server))
            .collect();
        all.sort_by_key(|(at, _)| *at);
        let mut servers: Vec<&mut ServerConn> = all.into_iter().map(|(_, server)| server).collect();
        let (client, seen, mut has_begun) = (&mut self.client, &mut self.seen, false);
        let copied = async {
            if let Some(name) = &plan.serial {
                take_turn(&mut servers, name).await?;
            }
            let (mut spread, response) = Spread::start(plan, execution.text, servers).await?;
            client.outbuf.extend_from_slice(&response.bytes);
            has_begun = true;
            match feed(client, seen, &mut spread, &work).await {
                Ok(()) => spread.finish().await,
                Err(error) => {
                    spread.give_up("the client has given it up").await;
                    Err(Failure::Own(error))
                }
            }
        };
        let copied: Result<u64, Failure> = copied.await;
        // The Sync behind Execute comes while COPY data is awaited: PostgreSQL ignores it, and the one behind the data counts.
        self.ignores_sync = has_begun && execution.bind.is_some();
        self.cancel.slot.work_is_over();
        copied
    }
}

/// Gives the client's data on until there is no more, or no more is of use.
async fn feed(
    client: &mut ClientSide,
    seen: &mut crate::backend::scan::Seen,
    spread: &mut Spread<'_>,
    work: &CancellationToken,
) -> Result<(), Error> {
    // What is left of the CopyData message at hand.
    let mut missing = 0_usize;
    let mut is_useful = true;
    loop {
        while missing > 0 && !client.inbuf.is_empty() {
            let step = missing.min(client.inbuf.len());
            if is_useful {
                is_useful = spread.push(&client.inbuf[..step]).await?;
            }
            client.inbuf.advance(step);
            missing -= step;
        }
        if missing == 0 {
            match frame::peek(&client.inbuf, limits::MESSAGE_BYTES)
                .map_err(|error| Error::protocol(error.to_string()))?
            {
                Some(header) if header.tag == b'd' => {
                    client.inbuf.advance(HEADER_LEN);
                    missing = header.total - HEADER_LEN;
                    continue;
                }
                Some(header) if header.total > limits::STATEMENT_BYTES => {
                    return Err(super::failure::too_long(header, limits::STATEMENT_BYTES));
                }
                Some(header) if client.inbuf.len() >= header.total => {
                    let message: BytesMut = client.inbuf.split_to(header.total);
                    match header.tag {
                        b'c' => return Ok(()),
                        b'f' => return Err(given_up(&message[HEADER_LEN..])),
                        // PostgreSQL ignores them while it takes COPY data.
                        b'S' | b'H' => continue,
                        b'X' => return Err(super::failure::client_gone()),
                        tag => {
                            let what = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
                            return Err(Error::new(ErrorKind::Protocol, SqlState::PROTOCOL_VIOLATION, what));
                        }
                    }
                }
                _ => {}
            }
        }
        tokio::select! {
            biased;
            () = work.cancelled() => return Err(super::failure::cancelled()),
            event = poll_fn(|cx| relay::poll(cx, client, None, seen, true)) => {
                if matches!(event?, Event::ClientGone) {
                    return Err(super::failure::client_gone());
                }
            }
        }
    }
}

fn given_up(body: &[u8]) -> Error {
    let why = frontend::query(body).map(|text| String::from_utf8_lossy(text).into_owned()).unwrap_or_default();
    Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, format!("COPY from stdin failed: {why}"))
}
