//! `[[database]]`: its servers, pool and tables.

use super::{pool, schema, table};
use crate::config::dsn;
use crate::config::model::{
    ChannelBinding, Database, Distribution, LatchScope, Pool, Reads, Secret, ServerAddress, SplitScans, SslMode,
    TwoPhase,
};
use crate::config::raw::Table;

/// Shards at most, a bound on what one statement can fan out to.
const SHARDS: usize = 1024;

pub(super) fn read(table: &Table<'_>, defaults: &Pool) -> Database {
    let name = table.required_text("name", "give the name that clients connect to").unwrap_or_default();
    let primary = table
        .required_text("primary", "write a connection string, as \"host=10.0.0.1 port=5432 dbname=app\"")
        .and_then(|text| server(table, "primary", &text));
    let replicas = servers(table, "replicas");
    let shards = servers(table, "shards");
    let coordinator = table.text("coordinator").and_then(|text| server(table, "coordinator", &text));
    if coordinator.is_some() && shards.is_empty() {
        table.warn("coordinator", "without shards there is nothing to merge", "name the shards, or remove this");
    }
    if shards.len() > SHARDS {
        table.fault("shards", format!("there are more than {SHARDS} shards"), "use fewer");
    }
    let reads = [Reads::Primary, Reads::Replica][table.choice("reads").unwrap_or(0)];
    if reads == Reads::Replica && replicas.is_empty() && !table.has("replicas") {
        table.fault("reads", "there are no replicas to read from", "name them in replicas, or set reads = \"primary\"");
    }
    let tables = table::read_all(table, table.texts_len("shards"));
    let schemas = schema::read(table, table.texts_len("shards"));
    let sharded = schemas.is_some() || tables.iter().any(|table| table.distribution != Distribution::Reference);
    if !shards.is_empty() && !sharded {
        table.warn("shards", "no table is sharded, so only reference tables use them", "add a [[database.table]]");
    }
    check_distinct(table, "shards", &shards);
    check_distinct(table, "replicas", &replicas);
    if let Some(primary) = &primary
        && replicas.iter().any(|replica| is_same(replica, primary))
    {
        table.fault("replicas", "the primary is named among its replicas", "remove it there");
    }
    Database {
        name,
        primary: primary.unwrap_or_else(nowhere),
        replicas,
        reads,
        shards,
        coordinator,
        tables,
        schemas,
        pool: pool::read(&table.table("pool"), Some(defaults)),
        max_clients: table.count("max_clients", 1..1_000_001).map(|count| count as usize),
        cache: table.flag("cache"),
        replication: table.flag("replication"),
        olap_timeout: table.duration("olap_timeout"),
        split_scans: split_scans(table),
        two_phase: two_phase(table),
    }
}

fn split_scans(table: &Table<'_>) -> Option<SplitScans> {
    const LEGS: std::ops::Range<u64> = 2..65;
    let from_bytes = table.size("parallel_partitions_from");
    let legs = table.count("parallel_partitions", LEGS)? as usize;
    if table.texts_len("shards") > 0 {
        let problem = "scans of one server's partitions are not split in a database with shards";
        table.warn(
            "parallel_partitions",
            problem,
            "give the primary's tables a [[database]] of their own, or remove this",
        );
        return None;
    }
    Some(SplitScans { legs, from_bytes })
}

fn two_phase(table: &Table<'_>) -> Option<TwoPhase> {
    if !table.has("two_phase") {
        return None;
    }
    let table = table.table("two_phase");
    let user = table.required_text("user", "name a role on the shards that no client logs in as").unwrap_or_default();
    let latch = [LatchScope::Fleet, LatchScope::Local, LatchScope::Off][table.choice("latch").unwrap_or(0)];
    let password = table.text("password").map(Secret::new);
    Some(TwoPhase { user, password, latch, lock_timeout: table.duration("lock_timeout") })
}

fn servers(table: &Table<'_>, key: &str) -> Vec<ServerAddress> {
    table.texts(key).iter().filter_map(|text| server(table, key, text)).collect()
}

fn server(table: &Table<'_>, key: &str, text: &str) -> Option<ServerAddress> {
    match dsn::parse(text) {
        Ok(mut address) => {
            // libpq would take them from the current folder, which a service does not choose.
            for path in [&mut address.sslrootcert, &mut address.sslcert, &mut address.sslkey].into_iter().flatten() {
                *path = table.resolve(path);
                if !path.is_file() {
                    table.fault(key, format!("{} is not a file", path.display()), "check the path in the string");
                }
            }
            Some(address)
        }
        Err(error) => {
            let help = error.hint.unwrap_or_else(|| "see PostgreSQL's manual, 34.1.1 Connection Strings".into());
            table.fault(key, error.message, help);
            None
        }
    }
}

/// Two shards on one database would hold the same rows twice.
fn check_distinct(table: &Table<'_>, key: &str, servers: &[ServerAddress]) {
    for (index, server) in servers.iter().enumerate() {
        if servers[..index].iter().any(|earlier| is_same(earlier, server)) {
            let problem = format!("{}:{} stands here twice", server.host, server.port);
            table.fault(key, problem, "every entry must be a database of its own");
        }
    }
}

fn is_same(a: &ServerAddress, b: &ServerAddress) -> bool {
    a.host == b.host && a.port == b.port && a.dbname == b.dbname
}

/// Stands in for an address that could not be read; the faults keep it from ever being used.
fn nowhere() -> ServerAddress {
    ServerAddress {
        host: String::new(),
        port: 0,
        dbname: None,
        user: None,
        password: None,
        sslmode: SslMode::Disable,
        sslrootcert: None,
        sslcert: None,
        sslkey: None,
        sslnegotiation_direct: false,
        channel_binding: ChannelBinding::Disable,
        application_name: None,
        connect_timeout: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::{self, Loaded};

    fn read(keys: &str) -> Result<Loaded, config::Faults> {
        let text = format!(
            "[[database]]\nname = \"a\"\nprimary = \"host=x\"\n{keys}\n[[user]]\nname = \"u\"\nauth = \"trust\"\n"
        );
        config::parse(&text, Path::new("proxy.toml"), Path::new("/nonexistent"), &|_| None)
    }

    #[test]
    fn scans_are_split_where_that_is_asked_for_and_there_are_no_shards() {
        let split = |keys: &str| read(keys).expect("no faults").config.databases["a"].split_scans;
        assert_eq!(split(""), None);
        assert_eq!(split("parallel_partitions_from = \"1MiB\""), None);
        let four = split("parallel_partitions = 4").expect("asked for");
        assert_eq!((four.legs, four.from_bytes), (4, 64 << 20));
        for keys in ["parallel_partitions = 1", "parallel_partitions = 65", "parallel_partitions_from = \"much\""] {
            assert!(read(keys).is_err(), "{keys}");
        }
        let with_shards = read("parallel_partitions = 4\nshards = [\"host=b\", \"host=c\"]").expect("no faults");
        assert_eq!(with_shards.config.databases["a"].split_scans, None);
        assert!(with_shards.warnings.iter().any(|warning| warning.path.ends_with("parallel_partitions")));
    }
}
