//! Listening sockets on their way from one process to another, over a Unix socket (SCM_RIGHTS, unix(7)).
//!
//! What clients have connected to and nobody has accepted yet stays in the sockets' queues: no connection is refused or lost.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Sockets at most.
const SOCKETS: usize = 8;
/// Bytes of their names at most.
const NAMES_BYTES: usize = 4096;
/// What the names begin with: the protocol and its version.
const GREETING: &str = "pgherd handover 1";

/// Sends sockets, each with a name that has no line break.
///
/// # Errors
/// The other end is gone.
pub async fn send(stream: &UnixStream, sockets: &[(String, OwnedFd)]) -> io::Result<()> {
    let names = sockets.iter().map(|(name, _)| format!("{name}\n")).collect::<String>();
    let text = format!("{GREETING}\n{names}");
    let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
    let sent = stream.async_io(Interest::WRITABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("too many sockets"));
        }
        Ok(rustix::net::sendmsg(stream, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?)
    });
    if sent.await? == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives what [`send`] sent.
///
/// # Errors
/// The other end is gone, or is no pgherd that this one understands.
pub async fn receive(stream: &UnixStream) -> io::Result<Vec<(String, OwnedFd)>> {
    let mut text = [0; NAMES_BYTES];
    let mut sockets = Vec::new();
    let received = stream.async_io(Interest::READABLE, || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut text)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                sockets.extend(descriptors);
            }
        }
        Ok(received.bytes)
    });
    let received = received.await?;
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = text.get(..received).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default();
    let names: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
    if !text.starts_with(&format!("{GREETING}\n")) || names.len() != sockets.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no handover that this pgherd understands"));
    }
    Ok(names.into_iter().zip(sockets).collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_socket_arrives_with_its_queue() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let waiting = std::net::TcpStream::connect(address).expect("in the queue");
        let (here, there) = UnixStream::pair().expect("a pair");
        send(&here, &[("tcp".into(), OwnedFd::from(listener))]).await.expect("sent");
        let (name, socket) = receive(&there).await.expect("received").remove(0);
        let listener = std::net::TcpListener::from(socket);
        let (_, from) = listener.accept().expect("accepted");
        assert_eq!((name.as_str(), Ok(from)), ("tcp", waiting.local_addr().map_err(|_| ())));
    }

    #[tokio::test]
    async fn what_is_no_handover_is_refused() {
        let (mut here, there) = UnixStream::pair().expect("a pair");
        here.write_all(b"something else\n").await.expect("sent");
        assert_eq!(receive(&there).await.expect_err("refused").kind(), io::ErrorKind::InvalidData);
        drop(here);
        assert!(receive(&there).await.is_err());
    }
}
