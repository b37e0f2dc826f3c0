//! Where Redis is: one process, of a cluster the one that holds a hash tag; and how a connection to it is made.

use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config as FredConfig, ConnectionConfig, Server, ServerConfig, TlsConfig, TlsConnector};
use fred::types::{Builder, CustomCommand, RespVersion, Value};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinHandle;

use super::connection::Failure;
use crate::config::model::Redis;
use crate::error::Error;

/// How long connecting, TLS included, may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that may wait in the client's queue; more fail at once.
const QUEUE_COMMANDS: usize = 20_000;

/// The task that moves a client's bytes; when it has ended the connection is broken.
pub(super) type Router = JoinHandle<Result<(), fred::error::Error>>;

/// The configuration's Redis, as the client library takes it. Connects to nothing.
pub(super) fn configured(settings: &Redis) -> Result<FredConfig, Error> {
    let url = settings.url.expose();
    let unreadable = |error| super::config_error("cache.redis.url cannot be read".into()).cause(error);
    let mut config = FredConfig::from_url(url).map_err(unreadable)?;
    if let Some(path) = &settings.ca {
        let tls =
            trusting(path).map_err(|why| super::config_error(format!("cache.redis.ca: {}: {why}", path.display())))?;
        config.tls = Some(TlsConfig::from(TlsConnector::from(tls)));
    }
    Ok(config)
}

/// TLS to who shows a certificate of these authorities.
fn trusting(path: &std::path::Path) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())? {
        roots.add(cert.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(builder.map_err(|error| error.to_string())?.with_root_certificates(roots).with_no_client_auth())
}

/// A connection that is made once and never again.
pub(super) async fn connect_as(config: &FredConfig, version: RespVersion) -> Result<(Client, Router), Failure> {
    let mut config = config.clone();
    config.version = version;
    let limits = ConnectionConfig {
        connection_timeout: CONNECT_TIMEOUT,
        internal_command_timeout: CONNECT_TIMEOUT,
        max_command_attempts: 1,
        max_command_buffer_len: QUEUE_COMMANDS,
        ..ConnectionConfig::default()
    };
    let client = Builder::from_config(config).with_connection_config(|connection| *connection = limits).build()?;
    let router = client.init().await?;
    Ok((client, router))
}

/// The process of a cluster that holds the keys of a name with a hash tag in it, as one that is asked alone.
pub(super) async fn in_cluster(config: &FredConfig, name: &str) -> Result<FredConfig, Failure> {
    let mut last = Failure::Broken("no node of the cluster is named".into());
    for seed in config.server.hosts() {
        match owner(config, &seed, name).await {
            Ok(owner) => return Ok(alone(config, owner)),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

fn alone(config: &FredConfig, server: Server) -> FredConfig {
    FredConfig { server: ServerConfig::Centralized { server }, ..config.clone() }
}

/// Who holds that name, as this node knows.
async fn owner(config: &FredConfig, seed: &Server, name: &str) -> Result<Server, Failure> {
    let (client, router) = connect_as(&alone(config, seed.clone()), RespVersion::RESP2).await?;
    let cluster = |args: Vec<Value>| {
        let client = &client;
        async move { client.custom::<Value, _>(CustomCommand::new_static("CLUSTER", None, false), args).await }
    };
    let answers = async {
        let slot = cluster(vec!["KEYSLOT".into(), name.into()]).await?;
        let slots = cluster(vec!["SLOTS".into()]).await?;
        Ok::<_, fred::error::Error>((slot, slots))
    };
    let answers = answers.await;
    router.abort();
    let (slot, slots) = answers?;
    let nobody = || Failure::Broken("nobody in the cluster holds the slot".into());
    let slot = slot.as_i64().ok_or_else(nobody)?;
    let ranges = slots.into_array();
    ranges.into_iter().find_map(|range| holder(range, slot, seed)).ok_or_else(nobody)
}

/// The master of a range of CLUSTER SLOTS, if the slot is in it. A node that does not know its own address leaves it out.
fn holder(range: Value, slot: i64, seed: &Server) -> Option<Server> {
    let mut parts = range.into_array().into_iter();
    let (first, last) = (parts.next()?.as_i64()?, parts.next()?.as_i64()?);
    if !(first..=last).contains(&slot) {
        return None;
    }
    let mut master = parts.next()?.into_array().into_iter();
    let host = master.next().and_then(|host| host.as_string()).filter(|host| !host.is_empty() && host != "?");
    let port = u16::try_from(master.next()?.as_i64()?).ok()?;
    Some(Server::new(host.unwrap_or_else(|| seed.host.to_string()), port))
}

/// A field of what INFO says.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(from: i64, to: i64, host: &str, port: i64) -> Value {
        let master = Value::Array(vec![host.into(), port.into(), "id".into()]);
        Value::Array(vec![from.into(), to.into(), master])
    }

    #[test]
    fn the_holder_of_a_slot_is_the_master_of_its_range() {
        let seed = Server::new("seed", 1);
        assert_eq!(holder(slots(0, 5460, "10.0.0.1", 7000), 5460, &seed), Some(Server::new("10.0.0.1", 7000)));
        assert_eq!(holder(slots(0, 5460, "10.0.0.1", 7000), 5461, &seed), None);
        assert_eq!(holder(slots(0, 9, "", 7000), 3, &seed), Some(Server::new("seed", 7000)));
        assert_eq!(holder(slots(0, 9, "h", 70_000), 3, &seed), None);
        assert_eq!(holder(Value::Array(vec![]), 3, &seed), None);
    }

    #[test]
    fn a_field_of_info_is_the_whole_line() {
        let info = "# Server\r\nrun_id:abc\r\nrole:master\r\nempty:\r\n";
        assert_eq!((field(info, "run_id"), field(info, "role")), (Some("abc"), Some("master")));
        assert_eq!((field(info, "run"), field(info, "empty")), (None, None));
    }
}
