//! What is neither server nor shard: TLS files and Redis.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fred::clients::Client as RedisClient;
use fred::interfaces::ClientLike;
use fred::types::config::Config as RedisConfig;
use fred::types::config::{ConnectionConfig, PerformanceConfig};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::timeout;

use super::report::Report;
use crate::config::model::{Config, Consistency, Redis};
use crate::net::tls::{ClientTls, ServerTls};

/// Days before a certificate's end from which it is warned of.
const WARNING_DAYS: i64 = 30;
/// How long Redis may take to be connected to.
const REDIS_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Pings whose median is compared with the timeout that the TOML gives.
const PINGS: usize = 11;

/// Certificates and keys on both sides.
pub(super) fn tls(config: &Config, client_tls: &ClientTls, report: &mut Report) {
    let place = "[listen] tls";
    match ServerTls::load(&config.listen.tls) {
        Ok(None) => report.ok(place, "off"),
        Ok(Some(_)) => report.ok(place, "certificate and key go together"),
        Err(error) => report.fault(place, error.message(), error.hint_text().unwrap_or("check the files")),
    }
    let named = [("cert", &config.listen.tls.cert), ("client_ca", &config.listen.tls.client_ca)];
    for (key, path) in named {
        if let Some(path) = path {
            expiry(&format!("{place}, {key}"), path, report);
        }
    }
    for database in config.databases.values() {
        let replicas = database.replicas.iter();
        for address in std::iter::once(&database.primary).chain(replicas).chain(&database.shards) {
            if let Err(error) = client_tls.load(address) {
                let place = format!("database {}, {address}", database.name);
                report.fault(place, error.message(), error.hint_text().unwrap_or("check the files"));
            }
        }
    }
}

/// Certificates that have ended, or soon will.
fn expiry(place: &str, path: &Path, report: &mut Report) {
    // What cannot be read was a fault of the configuration already.
    let Ok(certificates) = CertificateDer::pem_file_iter(path) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    for certificate in certificates.flatten() {
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(&certificate) else { continue };
        let validity = parsed.validity();
        let days = (validity.not_after.timestamp() - now).div_euclid(86_400);
        let subject = parsed.subject();
        if now < validity.not_before.timestamp() {
            report.fault(place, format!("the certificate \"{subject}\" is not valid yet"), "check the machine's clock");
        } else if days < 0 {
            report.fault(place, format!("the certificate \"{subject}\" has expired"), "renew it");
        } else if days < WARNING_DAYS {
            report.warning(place, format!("the certificate \"{subject}\" expires in {days} days"), "renew it");
        }
    }
}

/// The shared tier of the cache.
pub(super) async fn redis(config: &Config, report: &mut Report) {
    let Some(redis) = &config.cache.redis else {
        if config.cache.enabled && config.cache.consistency == Consistency::Strict {
            report.ok("[cache]", "memory only: strict as long as this is the only pgherd of its databases");
        }
        return;
    };
    let place = "[cache] redis";
    match ping(redis).await {
        Ok(median) if median > redis.timeout => {
            let text =
                format!("it answers in {median:?}, longer than timeout = {:?}: nothing would ever hit", redis.timeout);
            report.warning(place, text, "raise timeout, or move Redis nearer");
        }
        Ok(median) => report.ok(place, format!("it answers in {median:?}")),
        Err(problem) => report.fault(place, problem, "check url, and that Redis runs there"),
    }
}

/// The median time of a few round trips.
async fn ping(redis: &Redis) -> Result<Duration, String> {
    // The URL holds a password: no error of the parser is shown.
    let url = RedisConfig::from_url(redis.url.expose()).map_err(|_| "the url cannot be read".to_string())?;
    let url = RedisConfig { fail_fast: true, ..url };
    let connection = ConnectionConfig { connection_timeout: REDIS_CONNECT_TIMEOUT, ..ConnectionConfig::default() };
    let client = RedisClient::new(url, Some(PerformanceConfig::default()), Some(connection), None);
    let connected = timeout(REDIS_CONNECT_TIMEOUT, client.init()).await;
    let connected =
        connected.unwrap_or_else(|_| Err(fred::error::Error::new(fred::error::ErrorKind::Timeout, "no answer")));
    let result = match connected {
        Ok(_) => median_ping(&client).await,
        Err(error) => Err(format!("it cannot be reached: {}", error.details())),
    };
    let _ = client.quit().await;
    result
}

async fn median_ping(client: &RedisClient) -> Result<Duration, String> {
    let mut times = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let start = Instant::now();
        let answer = timeout(REDIS_CONNECT_TIMEOUT, client.ping::<String>(None)).await;
        match answer {
            Ok(Ok(_)) => times.push(start.elapsed()),
            Ok(Err(error)) => return Err(format!("it refuses a PING: {}", error.details())),
            Err(_) => return Err("it does not answer a PING".into()),
        }
    }
    times.sort_unstable();
    Ok(times[PINGS / 2])
}
