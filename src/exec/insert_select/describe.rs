//! What one shard says of an INSERT and of its query: mistakes in it, the types of its parameters, and those of the query's columns.

use bytes::Bytes;

use crate::backend::server::ServerConn;
use crate::error::Error;
use crate::exec::merge::description::Description;
use crate::wire::frame::Body;
use crate::wire::writer;

/// What a server says of a statement.
#[derive(Debug)]
pub struct Described {
    /// Types of its parameters.
    pub types: Vec<u32>,
    /// Columns that it gives; none is no row.
    pub columns: Option<Description>,
}

/// Parses a statement on an idle server. `Err` inside is its ErrorResponse.
///
/// # Errors
/// The server was lost.
pub async fn describe(server: &mut ServerConn, sql: &[u8], types: &[u32]) -> Result<Result<Described, Bytes>, Error> {
    server.unnamed = None;
    writer::parse(server.queue(), b"", sql, types);
    writer::describe(server.queue(), b'S', b"");
    writer::sync(server.queue());
    server.flush().await?;
    let mut described = Described { types: Vec::new(), columns: None };
    let mut refused = None;
    loop {
        let frame = server.read_frame().await?;
        server.note(&frame);
        match frame.tag() {
            b't' => described.types = parameters(frame.body()),
            b'T' => described.columns = Some(Description::read(frame.body())?),
            b'E' => refused = Some(frame.bytes),
            b'Z' => return Ok(refused.map_or(Ok(described), Err)),
            _ => {}
        }
    }
}

fn parameters(body: &[u8]) -> Vec<u32> {
    let mut body = Body::new(body);
    let count = body.i16().unwrap_or(0) as u16;
    (0..count).map_while(|_| body.i32()).map(|oid| oid as u32).collect()
}
