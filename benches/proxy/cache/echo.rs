//! The floor of a cache's hit: one hop that reads a request and writes an answer that lies there, in a process of its own.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// AuthenticationOk and ReadyForQuery.
const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";
/// Tag and length.
const HEADER_BYTES: usize = 5;

/// Answers every Query on that port with the bytes of that file, until it is killed.
///
/// # Errors
/// The file cannot be read, or the port is taken.
pub(crate) fn serve(port: u16, answer: &Path) -> io::Result<()> {
    let answer: Arc<[u8]> = std::fs::read(answer)?.into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let answer = answer.clone();
            tokio::spawn(async move {
                // Its client went: nobody is to be told.
                let _ = converse(socket, &answer).await;
            });
        }
    })
}

async fn converse(mut socket: TcpStream, answer: &[u8]) -> io::Result<()> {
    let mut inbuf = BytesMut::with_capacity(8 * 1024);
    let mut is_known = false;
    loop {
        if socket.read_buf(&mut inbuf).await? == 0 {
            return Ok(());
        }
        while let Some(length) = message(&inbuf, is_known) {
            if !is_known {
                socket.write_all(WELCOME).await?;
                is_known = true;
            } else if inbuf[0] == b'Q' {
                socket.write_all(answer).await?;
            }
            inbuf.advance(length);
        }
    }
}

/// The length of the message at the front, if it is there as a whole. The first one has no tag.
fn message(inbuf: &[u8], is_tagged: bool) -> Option<usize> {
    let tag = usize::from(is_tagged);
    let length = inbuf.get(tag..HEADER_BYTES - 1 + tag)?.try_into().ok().map(u32::from_be_bytes)?;
    let total = length as usize + tag;
    (inbuf.len() >= total).then_some(total)
}
