//! Statements of pgherd's own on a server connection: settings, reading back, cleaning up.

use std::sync::Arc;

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
        let before = std::mem::replace(&mut self.broken, true);
        let rows = self.collect().await?;
        self.broken = before;
        rows
    }

    /// The outer error is the socket's or the protocol's, the inner one the statement's.
    async fn collect(&mut self) -> Result<Result<Vec<Vec<Option<String>>>, Error>, Error> {
        let (mut rows, mut failure) = (Vec::new(), None);
        loop {
            let frame = self.read_frame().await?;
            self.note(&frame);
            match frame.tag() {
                b'D' => rows.push(text_row(frame.body()).ok_or_else(|| misbehaved("a DataRow is cut short"))?),
                b'E' => failure = Some(server_error(frame.body())),
                b'G' | b'W' => return Err(misbehaved("COPY where none was asked for")),
                b'Z' => return Ok(failure.map_or(Ok(rows), Err)),
                _ => {}
            }
        }
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
        let before = std::mem::replace(&mut self.broken, true);
        let outcome = self.collect().await?;
        self.broken = before;
        outcome.map(|_| ())
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
        let before = std::mem::replace(&mut self.broken, true);
        let outcome = self.collect().await?;
        self.broken = before;
        outcome.map(|_| ())
    }
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
