//! A connection of `check`'s own, made and logged in as pgherd makes and logs in its pools' connections.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::backend::connect::{self, Login};
use crate::config::model::ServerAddress;
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::net::framed::read_frame;
use crate::net::stream::Stream;
use crate::wire::backend::ErrorFields;
use crate::wire::frame::Body;
use crate::wire::sqlstate::SqlState;
use crate::wire::writer;

/// How long one statement may run.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(120);

/// Settings under which the same values have the same text on every server.
const SETTINGS: &str = "SET search_path = pg_catalog; SET statement_timeout = '115s'; SET lock_timeout = '5s'; \
    SET client_encoding = 'UTF8'; SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; \
    SET extra_float_digits = 1; SET bytea_output = 'hex'; SET lc_monetary = 'C'; SET standard_conforming_strings = on; \
    SET row_security = on";

/// One row: texts, `None` is NULL.
pub(super) type Row = Vec<Option<String>>;

/// A connection that runs one statement at a time.
pub(super) struct Client {
    stream: Stream,
    inbuf: BytesMut,
    /// The database on the server.
    pub(super) database: String,
    /// `server_version`, as the server reports it.
    pub(super) version: String,
}

impl Client {
    /// Connects and logs in.
    pub(super) async fn connect(address: &ServerAddress, login: &Login) -> Result<Self, Error> {
        let connected = Box::pin(connect::connect(address, login)).await?;
        let reported = |name: &str| connected.parameters.iter().rev().find(|(key, _)| key == name);
        let version = reported("server_version").map(|(_, value)| value.clone()).unwrap_or_default();
        let mut client =
            Self { stream: connected.stream, inbuf: connected.inbuf, database: connected.database, version };
        client.rows(SETTINGS).await?;
        Ok(client)
    }

    /// Runs a query string and returns the rows of all its statements.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        match timeout(STATEMENT_TIMEOUT, self.run(sql)).await {
            Ok(rows) => rows,
            Err(_) => {
                Err(Error::new(ErrorKind::Cancelled, SqlState::QUERY_CANCELED, "the server did not answer in time"))
            }
        }
    }

    /// The only value of the only row; `None` also where it is NULL.
    pub(super) async fn value(&mut self, sql: &str) -> Result<Option<String>, Error> {
        let rows = self.rows(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    async fn run(&mut self, sql: &str) -> Result<Vec<Row>, Error> {
        let mut out = BytesMut::new();
        writer::message(&mut out, b'Q', |out| writer::cstr(out, sql.as_bytes()));
        self.stream.write_all_buf(&mut out).await?;
        self.stream.flush().await?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            let frame = read_frame(&mut self.stream, &mut self.inbuf, limits::MESSAGE_BYTES).await?;
            let frame = frame.ok_or_else(|| Error::from(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)))?;
            match frame.tag() {
                b'D' => rows.push(row(frame.body()).ok_or_else(|| Error::protocol("a row cannot be read"))?),
                b'E' => refused = refused.or_else(|| Some(server_error(frame.body()))),
                b'Z' => return refused.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }
}

fn row(body: &[u8]) -> Option<Row> {
    let mut body = Body::new(body);
    let count = body.i16()?;
    let mut values = Vec::new();
    for _ in 0..count {
        let length = body.i32()?;
        values.push(match usize::try_from(length) {
            Ok(length) => Some(String::from_utf8_lossy(body.bytes(length)?).into_owned()),
            Err(_) => None,
        });
    }
    Some(values)
}

fn server_error(body: &[u8]) -> Error {
    match ErrorFields::parse(body) {
        Ok(fields) => {
            let error = Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, fields.message());
            error.cause(fields.to_server_error())
        }
        Err(_) => Error::protocol("an error of the server cannot be read"),
    }
}

/// A text as an SQL literal, whatever it holds.
pub(super) fn literal(text: &str) -> String {
    format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A name as an SQL identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_identifiers_hold_whatever_they_hold() {
        assert_eq!(literal("a'b\\c"), " E'a''b\\\\c'");
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn rows_are_read_and_cut_ones_are_not() {
        let body = b"\0\x03\0\0\0\x02hi\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(row(body), Some(vec![Some("hi".into()), None, Some(String::new())]));
        assert_eq!(row(&body[..body.len() - 1]), None);
        assert_eq!(row(b"\0"), None);
    }
}
