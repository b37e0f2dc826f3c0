//! Waiting for a whole message on a stream, for all that is not the relay.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::spare;
use crate::error::Error;
use crate::wire::frame::{self, Frame};
use crate::wire::startup;

/// Room to read into at once: logins are small.
const CHUNK_BYTES: usize = 4096;

/// The next message of at most `limit` bytes; `None` if the peer closed between two. What was read too much stays in `inbuf`.
///
/// Safe to drop at any moment: nothing that was read is lost.
///
/// # Errors
/// The stream failed or ended inside a message, or a header that the protocol or the limit does not allow.
pub async fn read_frame<S>(stream: &mut S, inbuf: &mut BytesMut, limit: usize) -> Result<Option<Frame>, Error>
where
    S: AsyncRead + Unpin,
{
    loop {
        let cut = frame::cut(inbuf, limit).map_err(|fault| Error::protocol(fault.to_string()).cause(fault))?;
        if cut.is_some() {
            return Ok(cut);
        }
        if !read_more(stream, inbuf).await? {
            return Ok(None);
        }
    }
}

/// The next packet without a tag, without its length; otherwise as [`read_frame`].
///
/// # Errors
/// As [`read_frame`].
pub async fn read_startup<S>(stream: &mut S, inbuf: &mut BytesMut) -> Result<Option<Bytes>, Error>
where
    S: AsyncRead + Unpin,
{
    loop {
        let cut = startup::cut(inbuf)?;
        if cut.is_some() {
            return Ok(cut);
        }
        if !read_more(stream, inbuf).await? {
            return Ok(None);
        }
    }
}

/// Reads what is there; false if the peer closed between two messages.
async fn read_more<S>(stream: &mut S, inbuf: &mut BytesMut) -> Result<bool, Error>
where
    S: AsyncRead + Unpin,
{
    spare::lend(inbuf);
    inbuf.reserve(CHUNK_BYTES);
    match stream.read_buf(inbuf).await {
        Ok(0) if inbuf.is_empty() => Ok(false),
        Ok(0) => Err(Error::from(io::Error::from(io::ErrorKind::UnexpectedEof))),
        Ok(_) => Ok(true),
        // A TLS peer that leaves without saying so, or a reset between two messages: it is gone all the same.
        Err(error) if inbuf.is_empty() && is_gone(&error) => Ok(false),
        Err(error) => Err(Error::from(error)),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn messages_are_whole_and_what_follows_stays() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"Q\0\0\0\x05xp\0\0\0\x04Z").await.expect("written");
        let mut inbuf = BytesMut::new();
        let first = read_frame(&mut ours, &mut inbuf, 10).await.expect("read").expect("whole");
        let second = read_frame(&mut ours, &mut inbuf, 10).await.expect("read").expect("whole");
        assert_eq!((first.tag(), second.tag(), &inbuf[..]), (b'Q', b'p', &b"Z"[..]));
    }

    #[tokio::test]
    async fn an_end_between_messages_is_none_and_inside_one_an_error() {
        let (mut ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        assert!(read_frame(&mut ours, &mut BytesMut::new(), 10).await.expect("ended").is_none());
        assert!(read_frame(&mut ours, &mut BytesMut::from(&b"Q\0"[..]), 10).await.is_err());
        assert!(read_startup(&mut ours, &mut BytesMut::from(&b"\0"[..])).await.is_err());
    }

    #[tokio::test]
    async fn a_message_over_the_limit_is_an_error_before_it_is_read() {
        let (mut ours, _theirs) = tokio::io::duplex(64);
        assert!(read_frame(&mut ours, &mut BytesMut::from(&b"p\0\0\0\x0a"[..]), 10).await.is_err());
    }
}
