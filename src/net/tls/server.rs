//! TLS towards clients.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::{ALPN, TlsInfo, certificate, provider, read_certificates, read_key, unusable};
use crate::config::model::{ListenTls, ListenTlsMode};
use crate::error::{Error, ErrorKind};
use crate::net::stream::Stream;
use crate::wire::sqlstate::SqlState;

/// What a record carries at most: what PostgreSQL's own do, who writes its buffer of so many bytes at once. libpq's
/// `PQconsumeInput` makes room for this much and reads once; what is left of a longer record lies in OpenSSL's buffer, and a
/// client that waits for its socket then (any that is not blocking) waits for ever.
const RECORD_BYTES: usize = 8192;

/// Counted by rustls's `max_fragment_size` as well.
const RECORD_HEADER_BYTES: usize = 5;

/// Our certificate, its key, and whom we believe about client certificates. A reload of the files makes a new one.
pub struct ServerTls {
    config: Arc<ServerConfig>,
    end_point: Option<Arc<[u8]>>,
}

impl ServerTls {
    /// Reads the files that `[listen] tls` names; `None` where TLS is off.
    ///
    /// # Errors
    /// A file that is missing or cannot be used; the error names it.
    pub fn load(tls: &ListenTls) -> Result<Option<Self>, Error> {
        if tls.mode == ListenTlsMode::Off {
            return Ok(None);
        }
        let cert = tls.cert.as_deref().ok_or_else(|| missing("cert"))?;
        let key = tls.key.as_deref().ok_or_else(|| missing("key"))?;
        if tls.mode == ListenTlsMode::VerifyClient && tls.client_ca.is_none() {
            return Err(missing("client_ca"));
        }
        let chain = read_certificates(cert)?;
        let end_point = chain.first().and_then(|leaf| certificate::end_point(leaf)).map(Arc::from);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|cause| Error::internal("TLS cannot be set up").cause(cause))?;
        let builder = match &tls.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(client_verifier(path)?),
        };
        let mut config = builder.with_single_cert(chain, read_key(key)?).map_err(|cause| {
            let why = format!("it does not go with the certificate \"{}\": {cause}", cert.display());
            unusable("private key", key, why).cause(cause)
        })?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.max_fragment_size = Some(RECORD_BYTES + RECORD_HEADER_BYTES);
        // As PostgreSQL: libpq resumes no session, and whoever keeps a connection pays for tickets at each login for nothing.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Some(Self { config: Arc::new(config), end_point }))
    }

    /// Takes a client's TLS handshake. The caller sets the deadline.
    ///
    /// # Errors
    /// The stream is no plain TCP, or the handshake failed; nothing can be told to the client then but TLS's own alert.
    pub async fn accept(&self, stream: Stream) -> Result<Stream, Error> {
        let peer = stream.peer();
        let socket =
            stream.into_tcp().ok_or_else(|| Error::internal("TLS was asked for on a stream that is not TCP"))?;
        let accepted = Box::pin(TlsAcceptor::from(Arc::clone(&self.config)).accept(socket)).await;
        let encrypted = accepted.map_err(|cause| {
            let message = format!("could not accept TLS connection: {cause}");
            Error::new(ErrorKind::Protocol, SqlState::PROTOCOL_VIOLATION, message).cause(cause).fatal()
        })?;
        let connection = encrypted.get_ref().1;
        let leaf = connection.peer_certificates().and_then(<[_]>::first);
        let info = TlsInfo {
            end_point: self.end_point.clone(),
            client_common_name: leaf.and_then(|leaf| certificate::common_name(leaf)),
            client_verified: leaf.is_some(),
            ..TlsInfo::of(connection)
        };
        Ok(Stream::encrypted(encrypted, peer, info))
    }
}

/// A certificate is asked for but not demanded here: whoever needs one is told so in PostgreSQL's words, not by an alert.
fn client_verifier(path: &Path) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, Error> {
    let mut roots = RootCertStore::empty();
    for authority in read_certificates(path)? {
        roots.add(authority).map_err(|cause| unusable("client authority", path, cause.to_string()).cause(cause))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|cause| unusable("client authority", path, cause.to_string()).cause(cause))
}

fn missing(key: &str) -> Error {
    let message = format!("listen.tls.{key} is missing: this TLS mode needs it");
    Error::new(ErrorKind::Config, SqlState::CONFIG_FILE_ERROR, message)
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}
