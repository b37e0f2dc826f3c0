//! Asking a server to cancel what one of its connections is running (PostgreSQL manual, 55.2.8).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::connect::{lost, open, timed_out};
use crate::config::model::ServerAddress;
use crate::error::Error;
use crate::net::tls::ClientTls;
use crate::wire::startup;

/// Bytes that a server may send before it closes: an error's worth, since a cancel has no answer.
const ANSWER_BYTES: u64 = 16 * 1024;

/// A server process that a cancel request can reach.
#[derive(Debug)]
pub struct CancelTarget {
    /// Its server.
    pub address: ServerAddress,
    /// How to speak TLS to it.
    pub tls: ClientTls,
    /// The process.
    pub pid: i32,
    /// The key it gave.
    pub secret: Bytes,
}

/// Sends a CancelRequest on a connection of its own, encrypted as `sslmode` says, and waits until the server closes it.
///
/// When it returns the server has sent the signal: a statement that starts later cannot be hit by this request. After an
/// error that is not certain.
///
/// # Errors
/// The server could not be reached, or did not close within `limit`.
pub async fn send(
    address: &ServerAddress,
    tls: &ClientTls,
    pid: i32,
    secret: &[u8],
    limit: Duration,
) -> Result<(), Error> {
    let request = async {
        let mut stream = open(address, tls).await?;
        let mut packet = BytesMut::new();
        startup::cancel_request(&mut packet, pid, secret);
        stream.write_all_buf(&mut packet).await.map_err(|cause| lost(address, cause))?;
        stream.flush().await.map_err(|cause| lost(address, cause))?;
        // A reset or a missing TLS close is an end as good as any.
        let _ = tokio::io::copy(&mut (&mut stream).take(ANSWER_BYTES), &mut tokio::io::sink()).await;
        Ok(())
    };
    timeout(limit, Box::pin(request)).await.unwrap_or_else(|_| Err(timed_out(address, limit)))
}
