//! One byte stream over TCP, a Unix socket or TLS, which knows where it comes from.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use super::home;
use super::tls::TlsInfo;
use crate::config::model::ServerAddress;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// How long a TCP connection may be silent before the kernel asks whether the peer is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// How long the kernel waits between asking.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Sends without Nagle's delay, and asks now and then whether a silent peer is still there.
///
/// # Errors
/// The system refuses.
pub(super) fn set_options(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)
}

/// Where the other end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// An address and port.
    Tcp(SocketAddr),
    /// A process of this machine.
    Unix,
}

impl Peer {
    /// The address, if there is one; an IPv4 address mapped into IPv6 is the IPv4 address.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Tcp(address) => Some(address.ip().to_canonical()),
            Self::Unix => None,
        }
    }

    /// The address and port, if there is one, with an IPv4 address as such.
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(SocketAddr::new(address.ip().to_canonical(), address.port())),
            Self::Unix => None,
        }
    }

    /// Whether it is on this machine: a Unix socket or a loopback address.
    pub fn is_loopback(self) -> bool {
        self.ip().is_none_or(|ip| ip.is_loopback())
    }
}

/// As PostgreSQL writes it: `[local]` for a Unix socket.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{}:{}", address.ip().to_canonical(), address.port()),
            Self::Unix => f.write_str("[local]"),
        }
    }
}

/// A connected socket, encrypted or not.
pub struct Stream {
    io: Io,
    /// The thread whose reactor it belongs to.
    home: usize,
    peer: Peer,
    tls: Option<Box<TlsInfo>>,
    traffic: Traffic,
}

/// Bytes that went over a stream, without TLS' own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read from the other end.
    pub read: u64,
    /// Written to it.
    pub written: u64,
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// It was lost on its way to another thread.
    Lost,
}

impl Stream {
    /// Wraps a TCP socket: without Nagle's delay, with keepalive.
    ///
    /// # Errors
    /// The socket is closed already.
    pub fn tcp(socket: TcpStream) -> io::Result<Self> {
        let peer = socket.peer_addr()?;
        set_options(&SockRef::from(&socket))?;
        Ok(Self::of(socket, peer))
    }

    /// Wraps a TCP socket that came from a listening one with [`set_options`]: Linux hands the options down, so that a client costs no
    /// calls for them.
    ///
    /// # Errors
    /// The socket is closed already.
    pub(super) fn accepted(socket: TcpStream, peer: SocketAddr) -> io::Result<Self> {
        if !cfg!(target_os = "linux") {
            set_options(&SockRef::from(&socket))?;
        }
        Ok(Self::of(socket, peer))
    }

    fn of(socket: TcpStream, peer: SocketAddr) -> Self {
        let (home, peer) = (home::here(), Peer::Tcp(peer));
        Self { io: Io::Tcp(socket), home, peer, tls: None, traffic: Traffic::default() }
    }

    /// Wraps a Unix socket.
    pub fn unix(socket: UnixStream) -> Self {
        Self { io: Io::Unix(socket), home: home::here(), peer: Peer::Unix, tls: None, traffic: Traffic::default() }
    }

    /// Connects to a server, trying each address of its name in turn. No TLS yet, and no deadline.
    ///
    /// # Errors
    /// No address answers; the error names the server.
    pub async fn connect(address: &ServerAddress) -> Result<Self, Error> {
        let failed = |cause: io::Error| {
            let message = format!("could not connect to server {address}: {cause}");
            Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, message)
                .hint("Is the server running there and accepting connections?")
                .cause(cause)
        };
        if let Some(path) = address.unix_path() {
            return UnixStream::connect(path).await.map(Self::unix).map_err(failed);
        }
        let socket = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(failed)?;
        Self::tcp(socket).map_err(failed)
    }

    pub(super) fn encrypted(stream: impl Into<TlsStream<TcpStream>>, peer: Peer, info: TlsInfo) -> Self {
        Self {
            io: Io::Tls(Box::new(stream.into())),
            home: home::here(),
            peer,
            tls: Some(Box::new(info)),
            traffic: Traffic::default(),
        }
    }

    /// The plain TCP socket inside, for starting TLS on it.
    pub(super) fn into_tcp(self) -> Option<TcpStream> {
        match self.io {
            Io::Tcp(socket) => Some(socket),
            Io::Unix(_) | Io::Tls(_) | Io::Lost => None,
        }
    }

    /// Whether [`Stream::move_here`] can move it.
    pub fn can_move(&self) -> bool {
        !matches!(self.io, Io::Tls(_))
    }

    /// Makes this thread's reactor the one that hears of it. A TLS stream stays where it is, which costs time but nothing else.
    ///
    /// # Errors
    /// The system refused; the socket is closed.
    pub fn move_here(&mut self) -> io::Result<()> {
        if self.home == home::here() || !self.can_move() {
            return Ok(());
        }
        self.io = match std::mem::replace(&mut self.io, Io::Lost) {
            Io::Tcp(socket) => Io::Tcp(TcpStream::from_std(socket.into_std()?)?),
            Io::Unix(socket) => Io::Unix(UnixStream::from_std(socket.into_std()?)?),
            other => other,
        };
        self.home = home::here();
        Ok(())
    }

    /// Where the other end is.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Our end's address, if it has one. Asks the kernel.
    pub fn local(&self) -> Option<SocketAddr> {
        let address = match &self.io {
            Io::Tcp(socket) => socket.local_addr(),
            Io::Tls(stream) => stream.get_ref().0.local_addr(),
            Io::Unix(_) | Io::Lost => return None,
        };
        address.ok().map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// What has gone over it.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Whether the other end is on this machine: a Unix socket or a loopback address.
    pub fn is_loopback(&self) -> bool {
        self.peer.is_loopback()
    }

    /// Whether it is a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.peer == Peer::Unix
    }

    /// What TLS agreed on; `None` without TLS.
    pub fn tls_info(&self) -> Option<&TlsInfo> {
        self.tls.as_deref()
    }

    /// The first byte that is waiting, left in the socket; `None` if the peer closed. Plain TCP only, else an error.
    ///
    /// # Errors
    /// The socket failed, or is not plain TCP.
    pub async fn peek_byte(&self) -> io::Result<Option<u8>> {
        let Io::Tcp(socket) = &self.io else { return Err(io::ErrorKind::Unsupported.into()) };
        let mut byte = [0];
        Ok((socket.peek(&mut byte).await? == 1).then_some(byte[0]))
    }
}

#[cfg(test)]
impl Stream {
    /// Whether the options of TCP are as they should be.
    pub(super) fn is_kept_alive_without_delay(&self) -> bool {
        let Io::Tcp(socket) = &self.io else { return false };
        let socket = SockRef::from(socket);
        let idle = socket.tcp_keepalive_time().ok();
        socket.tcp_nodelay().is_ok_and(|on| on) && socket.keepalive().is_ok_and(|on| on) && idle == Some(KEEPALIVE_IDLE)
    }
}

impl Traffic {
    fn note_written(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &polled {
            self.written += *written as u64;
        }
        polled
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("peer", &self.peer).field("tls", &self.tls).finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_read(cx, buf),
            Io::Unix(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
            Io::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        self.traffic.read += (buf.filled().len() - before) as u64;
        polled
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_write(cx, buf),
            Io::Unix(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
            Io::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        self.traffic.note_written(polled)
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Unix(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        self.traffic.note_written(polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(io) => io.is_write_vectored(),
            Io::Unix(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
            Io::Lost => false,
        }
    }

    #[inline]
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_flush(cx),
            Io::Unix(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
            Io::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Tcp(io) => Pin::new(io).poll_shutdown(cx),
            Io::Unix(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
            Io::Lost => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_a_unix_socket_or_a_loopback_address_even_mapped_into_ipv6() {
        let tcp = |text: &str| Peer::Tcp(text.parse().expect(text));
        for local in [Peer::Unix, tcp("127.0.0.1:1"), tcp("127.9.9.9:1"), tcp("[::1]:1"), tcp("[::ffff:127.0.0.1]:1")] {
            assert!(local.is_loopback(), "{local}");
        }
        for remote in
            [tcp("10.0.0.1:1"), tcp("0.0.0.0:1"), tcp("[::]:1"), tcp("[::ffff:10.0.0.1]:1"), tcp("[fe80::1]:1")]
        {
            assert!(!remote.is_loopback(), "{remote}");
        }
        assert_eq!(tcp("[::ffff:10.0.0.1]:5").to_string(), "10.0.0.1:5");
    }
}
