//! The load generator's client: blocking, plain or over TLS, with no more of the protocol than the load needs.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use pgherd::auth::scram::client::{Answer, Binding, Proof, Start};
use pgherd::auth::scram::{SCRAM_SHA_256, ScramKeys};
use pgherd::wire::writer;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// How long one answer may take: a load ends by itself, whatever happens.
const PATIENCE: Duration = Duration::from_secs(300);
/// Room for the answers to small requests.
const SMALL: usize = 16 * 1024;

/// Trusts one authority, and resumes no session: neither does libpq.
pub fn tls_config(ca: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(cert.expect("PEM")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// A way in.
#[derive(Clone)]
pub struct Door {
    pub port: u16,
    pub user: &'static str,
    pub database: String,
    /// What SCRAM needs, derived once so that the load generator does not spend PBKDF2's rounds for each login.
    pub keys: Option<Arc<ScramKeys>>,
    pub tls: Option<Arc<ClientConfig>>,
}

enum Io {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connection that is logged in.
pub struct Client {
    io: Io,
    scanner: Scanner,
}

impl Door {
    /// Connects and logs in.
    ///
    /// # Errors
    /// The connection or the login failed.
    pub fn enter(&self) -> io::Result<Client> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let io = match &self.tls {
            None => Io::Plain(socket),
            Some(config) => {
                // SSLRequest.
                socket.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
                let mut answer = [0];
                socket.read_exact(&mut answer)?;
                if answer != *b"S" {
                    return Err(io::Error::other("TLS is refused"));
                }
                let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
                let tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
                Io::Tls(Box::new(StreamOwned::new(tls, socket)))
            }
        };
        let mut client = Client { io, scanner: Scanner::default() };
        client.log_in(self)?;
        Ok(client)
    }
}

impl Client {
    fn log_in(&mut self, door: &Door) -> io::Result<()> {
        let mut out = BytesMut::new();
        let mut body = BytesMut::new();
        for text in ["user", door.user, "database", &door.database, "application_name", "bench", ""] {
            writer::cstr(&mut body, text.as_bytes());
        }
        out.put_u32(body.len() as u32 + 8);
        out.put_u32(0x0003_0000);
        out.put_slice(&body);
        self.send(&out)?;
        let mut scram: Option<Start> = None;
        let mut answer: Option<Answer> = None;
        loop {
            let (tag, body) = self.read_message()?;
            match (tag, body.get(..4)) {
                (b'Z', _) => return Ok(()),
                (b'E', _) => return Err(io::Error::other(readable(&body))),
                (b'R', Some([0, 0, 0, 0])) => {}
                (b'R', Some([0, 0, 0, 10])) => {
                    let start = Start::new(Binding::None);
                    out.clear();
                    writer::message(&mut out, b'p', |out| {
                        writer::cstr(out, SCRAM_SHA_256.as_bytes());
                        out.put_u32(start.message().len() as u32);
                        out.put_slice(start.message().as_bytes());
                    });
                    self.send(&out)?;
                    scram = Some(start);
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    let (Some(start), Some(keys)) = (scram.take(), &door.keys) else { return Err(unexpected(tag)) };
                    let proof = start.challenge(&body[4..], Proof::Keys(keys)).map_err(io::Error::other)?;
                    out.clear();
                    writer::message(&mut out, b'p', |out| out.put_slice(proof.message().as_bytes()));
                    self.send(&out)?;
                    answer = Some(proof);
                }
                (b'R', Some([0, 0, 0, 12])) => {
                    let answer = answer.take().ok_or_else(|| unexpected(tag))?;
                    answer.finish(&body[4..]).map_err(io::Error::other)?;
                }
                (b'S' | b'K' | b'N', _) => {}
                _ => return Err(unexpected(tag)),
            }
        }
    }

    /// One message of a login: byte for byte, since logins are measured at the other end.
    fn read_message(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.read_exact(&mut header)?;
        let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        let mut body = vec![0; len.saturating_sub(4)];
        self.read_exact(&mut body)?;
        Ok((header[0], body))
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> io::Result<()> {
        match &mut self.io {
            Io::Plain(io) => io.read_exact(buf),
            Io::Tls(io) => io.read_exact(buf),
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.io {
            Io::Plain(io) => io.read(buf),
            Io::Tls(io) => io.read(buf),
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection failed.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.io {
            Io::Plain(io) => io.write_all(bytes),
            Io::Tls(io) => io.write_all(bytes).and_then(|()| io.flush()),
        }
    }

    /// A simple query to its end; returns the bytes of its answer.
    ///
    /// # Errors
    /// The connection failed, or the server answered with an error.
    pub fn query(&mut self, text: &str) -> io::Result<u64> {
        let mut out = BytesMut::new();
        writer::query(&mut out, text.as_bytes());
        self.ask(&out, &mut [0; SMALL])
    }

    /// Sends a request and reads until ReadyForQuery; returns the bytes of its answer.
    ///
    /// # Errors
    /// As [`Client::query`].
    pub fn ask(&mut self, request: &[u8], buf: &mut [u8]) -> io::Result<u64> {
        self.send(request)?;
        let mut bytes = 0;
        while !self.read_some(buf, &mut bytes)? {}
        Ok(bytes)
    }

    /// Reads once, and adds what came to `bytes`; true at ReadyForQuery or CopyInResponse.
    ///
    /// # Errors
    /// As [`Client::query`].
    pub fn read_some(&mut self, buf: &mut [u8], bytes: &mut u64) -> io::Result<bool> {
        let read = self.read(buf)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *bytes += read as u64;
        self.scanner.scan(&buf[..read])
    }

    /// The bare socket of a connection without TLS, for who reads answers in another way.
    ///
    /// # Errors
    /// It is a connection over TLS.
    pub fn into_socket(self) -> io::Result<TcpStream> {
        match self.io {
            Io::Plain(socket) => Ok(socket),
            Io::Tls(_) => Err(io::Error::other("a connection over TLS has no bare socket")),
        }
    }

    /// Says goodbye and closes.
    ///
    /// # Errors
    /// The connection failed.
    pub fn leave(mut self) -> io::Result<()> {
        self.send(&[b'X', 0, 0, 0, 4])
    }
}

/// Follows messages without keeping them, but for errors.
#[derive(Default)]
struct Scanner {
    header: [u8; 5],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the body that are still to come.
    left: usize,
    error: Vec<u8>,
}

impl Scanner {
    /// True if these bytes end with a ReadyForQuery or a CopyInResponse.
    fn scan(&mut self, mut bytes: &[u8]) -> io::Result<bool> {
        let mut is_turn_over = false;
        while !bytes.is_empty() {
            if self.left == 0 {
                let more = (5 - self.have).min(bytes.len());
                self.header[self.have..self.have + more].copy_from_slice(&bytes[..more]);
                (self.have, bytes) = (self.have + more, &bytes[more..]);
                if self.have < 5 {
                    break;
                }
                let [_, len @ ..] = self.header;
                self.left = (u32::from_be_bytes(len) as usize).saturating_sub(4);
            }
            let tag = self.header[0];
            let body = self.left.min(bytes.len());
            if tag == b'E' {
                self.error.extend_from_slice(&bytes[..body]);
            }
            (self.left, bytes) = (self.left - body, &bytes[body..]);
            if self.left > 0 {
                break;
            }
            self.have = 0;
            is_turn_over = matches!(tag, b'Z' | b'G');
        }
        if is_turn_over && !self.error.is_empty() {
            return Err(io::Error::other(readable(&std::mem::take(&mut self.error))));
        }
        Ok(is_turn_over)
    }
}

fn readable(error: &[u8]) -> String {
    let fields =
        error.split(|&byte| byte == 0).filter(|field| matches!(field.first(), Some(b'S' | b'C' | b'M' | b'H')));
    let texts: Vec<_> = fields.map(|field| String::from_utf8_lossy(&field[1..]).into_owned()).collect();
    texts.join(" ")
}

fn unexpected(tag: u8) -> io::Error {
    io::Error::other(format!("unexpected message {}", char::from(tag)))
}
