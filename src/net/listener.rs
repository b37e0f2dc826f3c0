//! The sockets that clients connect to.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use super::stream::{self, Stream};
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// Connections that the kernel holds until we accept them.
const BACKLOG: i32 = 4096;
/// How long to wait when the process has no file descriptor left for another client.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(50);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    file: Option<SocketFile>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The file of a Unix socket, removed with its listener.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Another process listens there now.
    is_anothers: bool,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.is_anothers {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Listens on a TCP address; port 0 is a free one. An IPv6 wildcard takes IPv4 clients too where the system allows it.
    ///
    /// # Errors
    /// The address is taken, not ours, or not allowed; the error names it.
    pub fn bind_tcp(address: SocketAddr) -> Result<Self, Error> {
        let listener = tcp_socket(address).map_err(|cause| cannot_listen(&address, cause))?;
        Ok(Self { kind: Kind::Tcp(listener), file: None })
    }

    /// Listens on a TCP socket that another process has opened.
    ///
    /// # Errors
    /// It is none.
    pub fn take_tcp(socket: OwnedFd) -> Result<Self, Error> {
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        stream::set_options(&SockRef::from(&socket))?;
        Ok(Self { kind: Kind::Tcp(TcpListener::from_std(socket)?), file: None })
    }

    /// Listens on a Unix socket that another process has opened in that directory.
    ///
    /// # Errors
    /// It is none.
    pub fn take_unix(socket: OwnedFd, directory: &Path, port: u16) -> Result<Self, Error> {
        let socket = std::os::unix::net::UnixListener::from(socket);
        socket.set_nonblocking(true)?;
        let file = SocketFile { path: directory.join(format!(".s.PGSQL.{port}")), is_anothers: false };
        Ok(Self { kind: Kind::Unix(UnixListener::from_std(socket)?), file: Some(file) })
    }

    /// The socket once more, for another process to listen on.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        match &self.kind {
            Kind::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Kind::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    /// Another process listens there from now on: the file of a Unix socket is its own.
    pub fn leave(mut self) {
        if let Some(file) = &mut self.file {
            file.is_anothers = true;
        }
    }

    /// Listens on the Unix socket `.s.PGSQL.<port>` in a directory. A file left by a process that is gone is replaced.
    ///
    /// # Errors
    /// The file cannot be made, or another process is listening there; the error names it.
    pub fn bind_unix(directory: &Path, port: u16) -> Result<Self, Error> {
        let path = directory.join(format!(".s.PGSQL.{port}"));
        let bound = unix_socket(&path).map_err(|cause| cannot_listen(&path.display(), cause))?;
        Ok(Self { kind: Kind::Unix(bound), file: Some(SocketFile { path, is_anothers: false }) })
    }

    /// The TCP address that was bound, with the port that port 0 became.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(_) => None,
        }
    }

    /// Waits for the next client. Safe to drop at any moment.
    ///
    /// A client that left before it was accepted is passed over; while file descriptors are exhausted it waits for one.
    ///
    /// # Errors
    /// The listening socket itself failed.
    pub async fn accept(&self) -> Result<Stream, Error> {
        loop {
            let accepted = match &self.kind {
                Kind::Tcp(listener) => listener.accept().await.map(|(socket, peer)| Stream::accepted(socket, peer)),
                Kind::Unix(listener) => listener.accept().await.map(|(socket, _)| Ok(Stream::unix(socket))),
            };
            match accepted {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => tracing::debug!(%error, "a client left before it was accepted"),
                Err(error) if is_clients_fault(&error) => {
                    tracing::debug!(%error, "a client left before it was accepted")
                }
                Err(error) if is_exhausted(&error) => {
                    tracing::warn!(%error, "no resources to accept another client");
                    tokio::time::sleep(EXHAUSTED_WAIT).await;
                }
                Err(error) => return Err(Error::from(error)),
            }
        }
    }
}

fn tcp_socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        let _ = socket.set_only_v6(false);
    }
    socket.bind(&address.into())?;
    stream::set_options(&socket)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn unix_socket(path: &Path) -> io::Result<UnixListener> {
    if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            _ => return Err(io::ErrorKind::AddrInUse.into()),
        }
    }
    let listener = UnixListener::bind(path)?;
    // Who may connect is decided by authentication, as with PostgreSQL's unix_socket_permissions default.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    Ok(listener)
}

fn is_clients_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, NotConnected};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted | NotConnected)
}

/// ENFILE, EMFILE, ENOBUFS, ENOMEM: they pass when clients leave.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(12 | 23 | 24 | 105))
}

fn cannot_listen(place: &dyn std::fmt::Display, cause: io::Error) -> Error {
    let error = Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, format!("cannot listen on {place}"));
    let error = match cause.kind() {
        io::ErrorKind::AddrInUse => {
            error.hint("Another process listens there: stop it, or choose another port (listen.address).")
        }
        io::ErrorKind::PermissionDenied => error.hint(
            "This process may not use that port or directory: choose another (listen.address, listen.unix_socket_dir).",
        ),
        _ => error,
    };
    error.cause(cause)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    fn loopback() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[tokio::test]
    async fn a_tcp_client_is_accepted_with_its_address() {
        let listener = Listener::bind_tcp(loopback()).expect("bound");
        let address = listener.local_addr().expect("TCP");
        let mut client = TcpStream::connect(address).await.expect("connected");
        let mut stream = listener.accept().await.expect("accepted");
        assert_eq!(stream.peer(), crate::net::stream::Peer::Tcp(client.local_addr().expect("bound")));
        assert!(stream.is_loopback() && !stream.is_unix() && stream.tls_info().is_none());
        assert!(stream.is_kept_alive_without_delay());
        client.write_all(b"x").await.expect("written");
        assert_eq!(stream.peek_byte().await.expect("peeked"), Some(b'x'));
        assert_eq!(stream.read_u8().await.expect("read"), b'x');
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let first = Listener::bind_tcp(loopback()).expect("bound");
        let address = first.local_addr().expect("TCP");
        let error = Listener::bind_tcp(address).expect_err("taken");
        assert!(error.message().contains(&address.to_string()), "{error}");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("listen.address")));
        // The cause is told once, by whoever shows the error with its cause.
        assert!(!error.message().contains("in use"), "{error}");
        assert!(std::error::Error::source(&error).is_some_and(|cause| cause.to_string().contains("in use")));
    }

    #[tokio::test]
    async fn a_unix_socket_counts_as_loopback_and_its_file_goes_with_it() {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join(".s.PGSQL.6432");
        let listener = Listener::bind_unix(directory.path(), 6432).expect("bound");
        let _client = UnixStream::connect(&path).await.expect("connected");
        let stream = listener.accept().await.expect("accepted");
        assert!(stream.is_loopback() && stream.is_unix());
        assert_eq!(stream.peer().to_string(), "[local]");
        assert!(Listener::bind_unix(directory.path(), 6432).is_err(), "a live socket is left alone");
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_file_of_a_dead_process_is_replaced_and_another_file_is_not() {
        let directory = tempfile::tempdir().expect("made");
        let stale = std::os::unix::net::UnixListener::bind(directory.path().join(".s.PGSQL.1")).expect("bound");
        drop(stale);
        assert!(Listener::bind_unix(directory.path(), 1).is_ok());
        std::fs::write(directory.path().join(".s.PGSQL.2"), "mine").expect("written");
        assert!(Listener::bind_unix(directory.path(), 2).is_err());
        assert!(directory.path().join(".s.PGSQL.2").exists());
    }
}
