//! Statements of pgherd's own on a server connection: settings, reading back, cleaning up.

use std::sync::Arc;

use bytes::Bytes;

use super::failure::{misbehaved, server_error};
use super::pool::ProcessObserver;
use super::server::ServerConn;
use super::statements::Identity;
use crate::error::Error;
use crate::wire::backend::ErrorFields;
use crate::wire::frame;
use crate::wire::writer;

impl ServerConn {
    /// Tells someone that this connection is there, and later that it is not.
    pub fn observe(&mut self, observer: Arc<dyn ProcessObserver>) {
        observer.opened(self.pid, self.backend_start_us);
        self.observer = Some(observer);
    }

    /// Runs a Query of pgherd's own, waits for its end, and returns the values of its rows as text.
    ///
    /// # Errors
    /// The server's own error, with its SQLSTATE and message in detail and cause; or the socket failed.
    pub async fn run(&mut self, text: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        debug_assert!(self.expects.is_empty());
        writer::query(&mut self.outbuf, text.as_bytes());
        self.unnamed = None;
        self.flush().await?;
        let Answer { rows, error, .. } = self.collect().await?;
        error.map_or(Ok(rows), |body| Err(server_error(&body)))
    }

    /// Takes all up to the next ReadyForQuery. The connection is broken if it is not waited for.
    async fn collect(&mut self) -> Result<Answer, Error> {
        let before = std::mem::replace(&mut self.broken, true);
        let mut answer = Answer::default();
        loop {
            let frame = self.read_frame().await?;
            self.note(&frame);
            match frame.tag() {
                b'D' => answer.rows.push(text_row(frame.body()).ok_or_else(|| misbehaved("a DataRow is cut short"))?),
                b't' => answer.types = read_types(frame.body()).ok_or_else(|| misbehaved("types are cut short"))?,
                b'E' => answer.error = Some(Bytes::copy_from_slice(frame.body())),
                b'G' | b'W' => return Err(misbehaved("COPY where none was asked for")),
                b'Z' => break,
                _ => {}
            }
        }
        self.broken = before;
        Ok(answer)
    }

    /// Prepares a statement and waits for the answer, closing another first if `evicted` names one.
    ///
    /// # Errors
    /// The server refused it or failed.
    pub async fn prepare(&mut self, statement: &Identity, evicted: Option<&Identity>) -> Result<(), Error> {
        if let Some(evicted) = evicted {
            writer::close(&mut self.outbuf, b'S', evicted.server_name.as_bytes());
        }
        statement.write_parse(&mut self.outbuf);
        writer::sync(&mut self.outbuf);
        self.flush().await?;
        self.collect().await?.of_clients_statement()
    }

    /// Asks for a statement's parameter types, and thereby whether its result type is still what it was.
    ///
    /// # Errors
    /// The server failed, or has refused: `cached plan must not change result type`.
    pub async fn parameter_types(&mut self, statement: &Identity) -> Result<Vec<u32>, Error> {
        writer::describe(&mut self.outbuf, b'S', statement.server_name.as_bytes());
        writer::sync(&mut self.outbuf);
        self.flush().await?;
        let answer = self.collect().await?;
        let types = answer.types.clone();
        answer.of_clients_statement().map(|()| types)
    }

    /// Closes every statement that it holds by name, and waits until it has.
    ///
    /// # Errors
    /// The server failed.
    pub async fn close_statements(&mut self) -> Result<(), Error> {
        if self.held.is_empty() {
            return Ok(());
        }
        for name in self.held.names() {
            writer::close(&mut self.outbuf, b'S', name.as_bytes());
        }
        self.held.clear();
        writer::sync(&mut self.outbuf);
        self.flush().await?;
        self.collect().await?.of_clients_statement()
    }
}

/// What a server has answered to pgherd.
#[derive(Debug, Default)]
struct Answer {
    rows: Vec<Vec<Option<String>>>,
    /// Of a statement's parameters.
    types: Vec<u32>,
    /// The body of an ErrorResponse.
    error: Option<Bytes>,
}

impl Answer {
    /// An error in it speaks of what the client has sent: it is told as it is.
    fn of_clients_statement(self) -> Result<(), Error> {
        self.error.map_or(Ok(()), |body| Err(server_error(&body).verbatim(body)))
    }
}

/// Reads a ParameterDescription.
pub(super) fn read_types(body: &[u8]) -> Option<Vec<u32>> {
    let mut body = frame::Body::new(body);
    let count = usize::from(body.i16()? as u16);
    (0..count).map(|_| body.i32().map(|oid| oid as u32)).collect()
}

/// Reads a DataRow's values as text.
fn text_row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let mut body = frame::Body::new(body);
    let columns = usize::try_from(body.i16()?).ok()?;
    (0..columns)
        .map(|_| match usize::try_from(body.i32()?) {
            Ok(len) => Some(Some(String::from_utf8_lossy(body.bytes(len)?).into_owned())),
            Err(_) => Some(None),
        })
        .collect()
}

/// Whether an error says that a kept plan's result type changed: by the routine, since the message may be in any language.
pub(super) fn is_stale_plan(fields: &ErrorFields<'_>) -> bool {
    fields.code() == "0A000"
        && (fields.get(b'R') == Some("RevalidateCachedQuery")
            || fields.message().contains("cached plan must not change result type"))
}
