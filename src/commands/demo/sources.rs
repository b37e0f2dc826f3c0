//! Where an answer came from, as pgherd's own `/metrics` tell: what was counted between two looks.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Who answered a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// The result cache in pgherd's memory.
    Memory,
    /// The result cache in Redis.
    Redis,
    /// The primary, and the answer was kept.
    Filled,
    /// These servers, by name.
    Servers(Vec<String>),
    /// pgherd itself.
    Pgherd,
}

impl Source {
    /// For a table's cell.
    pub(super) fn label(&self) -> String {
        match self {
            Self::Memory => "memory".to_owned(),
            Self::Redis => "Redis".to_owned(),
            Self::Filled => "primary, kept".to_owned(),
            Self::Servers(names) => names.join(" + "),
            Self::Pgherd => "pgherd".to_owned(),
        }
    }
}

/// Every counter at one moment, by name and labels as they stand in the text.
#[derive(Debug, Clone, Default)]
pub(super) struct Counters(BTreeMap<String, f64>);

impl Counters {
    /// Reads them over HTTP.
    pub(super) async fn read(http: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect(http).await?;
        // HTTP/1.0, so that the body comes in one piece and ends with the connection.
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {http}\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        match text.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") => Ok(Self::parse(body)),
            _ => Err(io::Error::other(format!("/metrics answered: {}", text.lines().next().unwrap_or_default()))),
        }
    }

    fn parse(body: &str) -> Self {
        let lines = body.lines().filter(|line| !line.starts_with('#'));
        // A label's value may hold spaces: the figure is what stands behind the last one.
        let samples = lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)));
        Self(samples.collect())
    }

    /// By how much the counters of that name, among those whose labels contain `label`, have grown since.
    fn grown(&self, since: &Self, name: &str, label: &str) -> f64 {
        let of_name = self.0.iter().filter(|(key, _)| key.split('{').next() == Some(name) && key.contains(label));
        of_name.map(|(key, value)| value - since.0.get(key).copied().unwrap_or_default()).sum()
    }

    /// Who answered what was asked since then; `names` are the servers by `host:port`.
    pub(super) fn source(&self, since: &Self, names: &BTreeMap<String, String>) -> Source {
        let grown = |name: &str, label: &str| self.grown(since, name, label) > 0.5;
        if grown("pgherd_cache_hits_total", "tier=\"memory\"") {
            return Source::Memory;
        }
        if grown("pgherd_cache_hits_total", "tier=\"redis\"") {
            return Source::Redis;
        }
        if grown("pgherd_cache_fills_total", "") {
            return Source::Filled;
        }
        let leased = |address: &str| grown("pgherd_pool_wait_seconds_count", &format!("server=\"{address}/"));
        let mut servers: Vec<String> =
            names.iter().filter(|(address, _)| leased(address)).map(|(_, name)| name.clone()).collect();
        servers.sort_unstable();
        if servers.is_empty() { Source::Pgherd } else { Source::Servers(servers) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> BTreeMap<String, String> {
        BTreeMap::from([
            ("127.0.0.1:1".to_owned(), "shard 1".to_owned()),
            ("127.0.0.1:2".to_owned(), "shard 0".to_owned()),
        ])
    }

    #[test]
    fn servers_that_lent_a_connection_are_named() {
        let before = Counters::parse("pgherd_pool_wait_seconds_count{server=\"127.0.0.1:1/app\"} 4\n");
        let after = Counters::parse(
            "# HELP x\npgherd_pool_wait_seconds_count{server=\"127.0.0.1:1/app\"} 5\npgherd_pool_wait_seconds_count{server=\"127.0.0.1:2/app\"} 1\n",
        );
        assert_eq!(after.source(&before, &names()), Source::Servers(vec!["shard 0".to_owned(), "shard 1".to_owned()]));
        assert_eq!(after.source(&after, &names()), Source::Pgherd);
    }

    #[test]
    fn a_hit_tells_its_tier() {
        let memory = "pgherd_cache_hits_total{cache=\"shop\",tier=\"memory\"} ";
        let redis = "pgherd_cache_hits_total{cache=\"shop\",tier=\"redis\"} ";
        let counters = |hits: (u32, u32)| Counters::parse(&format!("{memory}{}\n{redis}{}\n", hits.0, hits.1));
        assert_eq!(counters((1, 0)).source(&counters((0, 0)), &names()), Source::Memory);
        assert_eq!(counters((1, 1)).source(&counters((1, 0)), &names()), Source::Redis);
    }
}
