//! The demo's servers: a primary with a streaming replica, two shards, and Redis if it is there; and the data on them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use super::data;
use super::servers::{Ground, PostgresOptions, PostgresServer, RedisServer, ServerError};

/// How many shards there are.
pub(super) const SHARDS: usize = 2;

/// All of the demo's servers. Dropping it stops them and removes their data.
#[derive(Debug)]
pub(super) struct Herd {
    pub(super) replica: PostgresServer,
    pub(super) primary: PostgresServer,
    pub(super) shards: Vec<PostgresServer>,
    pub(super) redis: Option<RedisServer>,
    pub(super) ground: Arc<Ground>,
}

impl Herd {
    /// Starts the servers and loads the data, on several of them at once.
    pub(super) fn start() -> Result<Self, ServerError> {
        let ground = Ground::new()?;
        let (main, shards) = thread::scope(|scope| {
            let main = scope.spawn(|| start_primary(&ground));
            let shards: Vec<_> = (0..SHARDS).map(|shard| (shard, &ground)).collect();
            let shards: Vec<_> =
                shards.into_iter().map(|(shard, ground)| scope.spawn(move || start_shard(ground, shard))).collect();
            let shards: Result<Vec<_>, _> = shards.into_iter().map(joined).collect();
            (joined(main), shards)
        });
        let (primary, replica) = main?;
        let redis = RedisServer::start(&ground)?;
        Ok(Self { replica, primary, shards: shards?, redis, ground })
    }

    /// Writes the configuration of one pgherd over these servers and says where it is.
    pub(super) fn write_config(&self, name: &str, port: u16, http: u16) -> Result<PathBuf, ServerError> {
        let path = self.ground.folder().join(name);
        self.ground.write(&path, &self.config(port, http))?;
        Ok(path)
    }

    fn config(&self, port: u16, http: u16) -> String {
        let server = |server: &PostgresServer| {
            format!("\"host=127.0.0.1 port={} dbname=shop user={}\"", server.port(), data::ROLE)
        };
        let (primary, replica) = (server(&self.primary), server(&self.replica));
        let shards: Vec<String> = self.shards.iter().map(server).collect();
        let sharded: String = data::SHARDED
            .iter()
            .map(|table| {
                format!(
                    "[[database.table]]\nname = \"public.{table}\"\nshard_key = \"customer_id\"\nmethod = \"hash\"\n\n"
                )
            })
            .collect();
        let redis = self.redis.as_ref().map(|redis| {
            // A second, because a demo may run on a machine that is busy with other things; in production a late Redis is a miss.
            // A Redis that was just started is not trusted before one lease has passed.
            format!("redis = {{ url = \"{}\", timeout = \"1s\", lease = \"3s\" }}\n", redis.url())
        });
        format!(
            "# Written by `pgherd demo`.\n\
             [listen]\naddress = \"127.0.0.1:{port}\"\nhttp = \"127.0.0.1:{http}\"\n\n\
             [pool]\nmax_connections = 20\nmin_connections = 1\n\n\
             [[database]]\nname = \"shop\"\nprimary = {primary}\nshards = [\n    {shards},\n]\n\n\
             {sharded}[[database.table]]\nname = \"public.countries\"\nreference = true\n\n\
             # The same primary, but reads go to its replica.\n\
             [[database]]\nname = \"shop_replica\"\nprimary = {primary}\nreplicas = [{replica}]\nreads = \"replica\"\ncache = false\n\n\
             [[user]]\nname = \"{role}\"\nauth = \"trust\"\n\n\
             [cache]\nenabled = true\nttl = \"5m\"\n{redis}\n\
             [telemetry]\nlog = \"warn\"\n",
            shards = shards.join(",\n    "),
            role = data::ROLE,
            redis = redis.unwrap_or_default(),
        )
    }

    /// The servers' names by `host:port`, as metrics call them.
    pub(super) fn names(&self) -> BTreeMap<String, String> {
        let at = |server: &PostgresServer| format!("127.0.0.1:{}", server.port());
        let mut names =
            BTreeMap::from([(at(&self.primary), "primary".to_owned()), (at(&self.replica), "replica".to_owned())]);
        names.extend(self.shards.iter().enumerate().map(|(shard, server)| (at(server), format!("shard {shard}"))));
        names
    }
}

fn start_primary(ground: &Arc<Ground>) -> Result<(PostgresServer, PostgresServer), ServerError> {
    let primary = PostgresServer::start(ground, &PostgresOptions::default())?;
    create_shop(&primary)?;
    run_as_owner(&primary, "shop", &data::local())?;
    // Everything that the shards hold, together in one database that pgherd does not know: what its merged answers are compared with.
    primary.sql("postgres", "create database together owner demo")?;
    run_as_owner(&primary, "together", data::SHARD_TABLES)?;
    let replica = primary.replica(&PostgresOptions::default())?;
    Ok((primary, replica))
}

fn start_shard(ground: &Arc<Ground>, shard: usize) -> Result<PostgresServer, ServerError> {
    let server = PostgresServer::start(ground, &PostgresOptions::default().own_initdb())?;
    create_shop(&server)?;
    run_as_owner(&server, "shop", data::SHARD_TABLES)?;
    run_as_owner(&server, "shop", &data::shard(shard, SHARDS))?;
    Ok(server)
}

fn create_shop(server: &PostgresServer) -> Result<(), ServerError> {
    server.sql("postgres", data::PREPARE)?;
    server.sql("postgres", "create database shop owner demo")?;
    // From PostgreSQL 15 on the schema belongs to the database's owner already; before it did not.
    server.sql("shop", "alter schema public owner to demo").map(drop)
}

fn run_as_owner(server: &PostgresServer, dbname: &str, statements: &str) -> Result<(), ServerError> {
    server.sql(dbname, &format!("set role demo; {statements}"))?;
    server.sql(dbname, "analyze").map(drop)
}

fn joined<T>(handle: thread::ScopedJoinHandle<'_, Result<T, ServerError>>) -> Result<T, ServerError> {
    handle.join().unwrap_or_else(|_| Err(ServerError("a server's thread panicked".to_owned())))
}
