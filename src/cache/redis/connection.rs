//! One connection to one Redis process. It is never mended: when it breaks another is made, so that everything which is sent on
//! it reaches the process whose run id is in its keys.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, KeysInterface, LuaInterface, PubsubInterface};
use fred::types::config::{Config as FredConfig, ServerConfig};
use fred::types::{CustomCommand, InfoKind, Message, RespVersion, Value};
use parking_lot::Mutex;
use tokio::sync::broadcast;

use super::place::{self, CONNECT_TIMEOUT, Router};
use super::script::{self, Script};
use crate::cache::faults::Switches;
use crate::cache::key::Key;

/// Why a command has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It took longer than it may. What it does may yet happen.
    Late,
    /// Redis or the connection said no.
    Broken(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Late => f.write_str("no answer in time"),
            Self::Broken(why) => f.write_str(why),
        }
    }
}

impl From<fred::error::Error> for Failure {
    fn from(error: fred::error::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What a script returned: a list of byte strings, at least one, the first a word.
#[derive(Debug)]
pub(super) struct Reply(Vec<Bytes>);

impl Reply {
    fn new(value: Value) -> Result<Self, Failure> {
        let Value::Array(values) = value else { return Err(Failure::Broken("not a list".into())) };
        let parts: Vec<Bytes> = values
            .into_iter()
            .map(|value| match value {
                Value::String(text) => text.into_inner(),
                Value::Bytes(bytes) => bytes,
                _ => Bytes::new(),
            })
            .collect();
        if parts.is_empty() { Err(Failure::Broken("an empty list".into())) } else { Ok(Self(parts)) }
    }

    /// The word that says what happened.
    pub(super) fn word(&self) -> &str {
        self.text(0)
    }

    pub(super) fn bytes(&self, at: usize) -> Bytes {
        self.0.get(at).cloned().unwrap_or_default()
    }

    pub(super) fn text(&self, at: usize) -> &str {
        self.0.get(at).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    pub(super) fn number(&self, at: usize) -> Option<u64> {
        self.text(at).parse().ok()
    }

    pub(super) fn texts_from(&self, at: usize) -> impl Iterator<Item = &str> {
        (at..self.0.len()).map(|at| self.text(at))
    }
}

/// The connection.
pub(super) struct Connection {
    client: Client,
    router: Router,
    /// How many replicas must have what keeps answers fresh.
    replicas: u32,
    texts: [String; script::COUNT],
    shas: Vec<String>,
    state_key: String,
    entry_prefix: String,
    /// The generation that this connection registered in.
    pub(super) generation: String,
    /// The number of that registration: older commands of ours do not count.
    pub(super) fence: u64,
    /// Until then others may still be served by a process that was in this one's place.
    pub(super) settles_at: Option<Instant>,
    /// Who hears what is published there.
    listener: tokio::sync::Mutex<Listener>,
    /// Redis' clock in ms, and when its answer had arrived: it is at least that much since.
    clock: Mutex<(u64, Instant)>,
}

impl Connection {
    /// Connects, learns the process' run id and clock, and loads the scripts. Changes nothing in Redis.
    pub(super) async fn open(
        config: &FredConfig,
        space: &str,
        replicas: u32,
        faults: Switches,
    ) -> Result<Self, Failure> {
        let within = CONNECT_TIMEOUT * 2;
        let config = match &config.server {
            // One process holds all that is ours of a cluster: its keys share a hash tag.
            ServerConfig::Clustered { .. } => {
                let place = place::in_cluster(config, space);
                tokio::time::timeout(within, place).await.map_err(|_| Failure::Late)??
            }
            _ => config.clone(),
        };
        let (client, router) = tokio::time::timeout(within, connect(&config)).await.map_err(|_| Failure::Late)??;
        // From here on the router's task ends with this value, whatever happens.
        let mut connection = Self {
            client,
            router,
            replicas,
            texts: script::texts(faults),
            shas: Vec::new(),
            state_key: String::new(),
            entry_prefix: String::new(),
            generation: String::new(),
            fence: 0,
            settles_at: None,
            listener: tokio::sync::Mutex::new(Listener::Absent(Box::new(config))),
            clock: Mutex::new((0, Instant::now())),
        };
        tokio::time::timeout(within, connection.learn(space)).await.map_err(|_| Failure::Late)??;
        Ok(connection)
    }

    async fn learn(&mut self, space: &str) -> Result<(), Failure> {
        let info: String = self.client.info(Some(InfoKind::Server)).await?;
        let run_id = place::field(&info, "run_id").ok_or(Failure::Broken("no run_id in INFO".into()))?;
        self.state_key = format!("{space}:{run_id}:state");
        self.entry_prefix = format!("{space}:{run_id}:e:");
        self.counts_replicas().await?;
        for text in &self.texts {
            self.shas.push(self.client.script_load::<String, _>(text.as_str()).await?);
        }
        let time: Vec<u64> =
            self.client.custom(CustomCommand::new_static("TIME", None, false), Vec::<Value>::new()).await?;
        let [seconds, micros] = time[..] else { return Err(Failure::Broken("TIME is not two numbers".into())) };
        self.clock_is(seconds * 1000 + micros / 1000);
        Ok(())
    }

    /// Waits until something is published that comes after that, or may have been; for ever where nothing is heard.
    pub(super) async fn news(&self, known: u64) {
        let mut listener = self.listener.lock().await;
        loop {
            match &mut *listener {
                Listener::Absent(config) => {
                    let listens = tokio::time::timeout(CONNECT_TIMEOUT, listen(config, &self.state_key)).await;
                    *listener = match listens.unwrap_or(Err(Failure::Late)) {
                        Ok(ear) => Listener::Hears(ear),
                        Err(failure) => {
                            tracing::info!(%failure, "cannot listen to Redis: news come with heartbeats");
                            Listener::Deaf
                        }
                    };
                    // What was published before is known to a heartbeat.
                    return;
                }
                Listener::Hears(ear) => match ear.news.recv().await {
                    Ok(message) if message.value.as_u64().is_some_and(|number| number <= known) => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => *listener = Listener::Deaf,
                },
                Listener::Deaf => return std::future::pending().await,
            }
        }
    }

    /// Forgets what stands here of the database under another scope, and notes this one: a pgherd that has not noticed yet that the
    /// server is another one must serve nothing any more before anybody writes under the new name.
    pub(super) async fn take_over(&self, database: &str, scope: &str) -> Result<(), Failure> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.replace(database, scope)).await.map_err(|_| Failure::Late)?
    }

    async fn replace(&self, database: &str, scope: &str) -> Result<(), Failure> {
        let pointer = format!("{database}:scope");
        let known: Option<String> = self.client.get(pointer.as_str()).await?;
        if let Some(other) = known.filter(|known| known != scope) {
            let (own, others) = (format!("{database}:{scope}:"), format!("{database}:{other}:"));
            self.client.del::<(), _>(self.state_key.replacen(&own, &others, 1)).await?;
        }
        Ok(self.client.set(pointer, scope, None, None, false).await?)
    }

    /// Takes a reading of Redis' clock that has just arrived.
    pub(super) fn clock_is(&self, now_ms: u64) {
        *self.clock.lock() = (now_ms, Instant::now());
    }

    /// Redis' clock at `at`, or a little less: never more.
    pub(super) fn redis_ms(&self, at: Instant) -> u64 {
        let (read_ms, read_at) = *self.clock.lock();
        read_ms + u64::try_from(at.saturating_duration_since(read_at).as_millis()).unwrap_or(0)
    }

    /// Whether the connection is known to be broken.
    pub(super) fn is_broken(&self) -> bool {
        self.router.is_finished()
    }

    /// Runs a script on the state alone.
    pub(super) async fn call(&self, script: Script, args: Vec<Value>, within: Duration) -> Result<Reply, Failure> {
        self.run(script, vec![self.state_key.clone()], args, within).await
    }

    /// Runs a script on the state and one entry.
    pub(super) async fn call_for(
        &self,
        script: Script,
        key: &Key,
        args: Vec<Value>,
        within: Duration,
    ) -> Result<Reply, Failure> {
        let entry_key = format!("{}{:032x}", self.entry_prefix, key.hash());
        self.run(script, vec![self.state_key.clone(), entry_key], args, within).await
    }

    /// Runs a script on the state alone, and sees to it that every process which may be promoted has what it did.
    pub(super) async fn call_surely(
        &self,
        script: Script,
        args: Vec<Value>,
        within: Duration,
    ) -> Result<Reply, Failure> {
        if self.replicas == 0 {
            return self.call(script, args, within).await;
        }
        let surely = async {
            // One round trip: WAIT is for all that was written on this connection before it.
            let (reply, had) = tokio::join!(self.call(script, args, within), Box::pin(self.wait_for_replicas(within)));
            let reply = reply?;
            match had? >= u64::from(self.replicas) {
                true => Ok(reply),
                false => Err(Failure::Broken("not all replicas have it".into())),
            }
        };
        tokio::time::timeout(within, Box::pin(surely)).await.map_err(|_| Failure::Late)?
    }

    async fn wait_for_replicas(&self, within: Duration) -> Result<u64, Failure> {
        let args = vec![Value::from(i64::from(self.replicas)), Value::from(within.as_millis() as i64)];
        Ok(self.client.custom(CustomCommand::new_static("WAIT", None, false), args).await?)
    }

    /// Whether WAIT for as many as the configuration says is WAIT for all: one that is not counted may be the one that is promoted.
    pub(super) async fn counts_replicas(&self) -> Result<(), Failure> {
        if self.replicas == 0 {
            return Ok(());
        }
        let info: String = Box::pin(self.client.info(Some(InfoKind::Replication))).await?;
        if place::field(&info, "role") != Some("master") {
            return Err(Failure::Broken("Redis is a replica".into()));
        }
        let connected = place::field(&info, "connected_slaves").and_then(|count| count.parse::<u32>().ok());
        match connected {
            Some(count) if count <= self.replicas => Ok(()),
            _ => Err(Failure::Broken("Redis has more replicas than cache.redis.replicas says".into())),
        }
    }

    async fn run(
        &self,
        script: Script,
        keys: Vec<String>,
        args: Vec<Value>,
        within: Duration,
    ) -> Result<Reply, Failure> {
        if self.is_broken() {
            return Err(Failure::Broken("the connection is closed".into()));
        }
        // Boxed: fred's futures are large, and a client's task holds one for as long as it lives.
        tokio::time::timeout(within, Box::pin(self.evaluate(script, keys, args))).await.map_err(|_| Failure::Late)?
    }

    async fn evaluate(&self, script: Script, keys: Vec<String>, args: Vec<Value>) -> Result<Reply, Failure> {
        let sha = self.shas.get(script as usize).cloned().unwrap_or_default();
        let value = match self.client.evalsha::<Value, _, _, _>(sha, keys.clone(), args.clone()).await {
            // A WAIT that is on its way would not wait for what is sent now.
            Err(error) if error.details().starts_with("NOSCRIPT") && self.replicas > 0 => {
                return Err(Failure::Broken("Redis has lost its scripts".into()));
            }
            // SCRIPT FLUSH: sending the text loads it again.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.client.eval::<Value, _, _, _>(self.texts[script as usize].as_str(), keys, args).await?
            }
            outcome => outcome?,
        };
        Reply::new(value)
    }

    /// Ends the connection now, with whatever is on its way.
    pub(super) fn close(&self) {
        self.router.abort();
    }
}

/// Listens on a connection of its own: what becomes of that is nothing to anybody else.
enum Listener {
    Absent(Box<FredConfig>),
    Hears(Ear),
    /// Not allowed, not possible, or over.
    Deaf,
}

struct Ear {
    _client: Client,
    router: Router,
    news: broadcast::Receiver<Message>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.router.abort();
    }
}

/// Subscribes to what is published under that name.
async fn listen(config: &FredConfig, name: &str) -> Result<Ear, Failure> {
    let (client, router) = place::connect_as(config, RespVersion::RESP3).await?;
    let ear = Ear { news: client.message_rx(), _client: client.clone(), router };
    client.subscribe(name).await?;
    // An error of SUBSCRIBE is taken for the answer to what is sent next; and when this is answered it has been heard.
    client.ping::<()>(None).await?;
    Ok(ear)
}

/// Connects, by RESP3 if the server knows it.
async fn connect(config: &FredConfig) -> Result<(Client, Router), Failure> {
    match place::connect_as(config, RespVersion::RESP3).await {
        // A server that does not know HELLO.
        Err(Failure::Broken(why)) if why.contains("HELLO") || why.contains("unknown command") => {
            place::connect_as(config, RespVersion::RESP2).await
        }
        outcome => outcome,
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("state_key", &self.state_key)
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}
