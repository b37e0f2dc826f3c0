//! One connection to one Redis process. It is never mended: when it breaks another is made, so that everything which is sent on
//! it reaches the process whose run id is in its keys.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface, LuaInterface};
use fred::types::config::{Config as FredConfig, ConnectionConfig};
use fred::types::{Builder, CustomCommand, InfoKind, RespVersion, Value};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::script::{self, Script};
use crate::cache::faults::Switches;
use crate::cache::key::Key;

/// How long connecting, TLS included, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Commands that may wait in the client's queue; more fail at once.
const QUEUE_COMMANDS: usize = 20_000;

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
    router: JoinHandle<Result<(), fred::error::Error>>,
    texts: [String; script::COUNT],
    shas: Vec<String>,
    state_key: String,
    entry_prefix: String,
    /// The generation that this connection registered in.
    pub(super) generation: String,
    /// The number of that registration: older commands of ours do not count.
    pub(super) fence: u64,
    /// Redis' clock in ms, and when its answer had arrived: it is at least that much since.
    clock: Mutex<(u64, Instant)>,
}

impl Connection {
    /// Connects, learns the process' run id and clock, and loads the scripts. Changes nothing in Redis.
    pub(super) async fn open(config: &FredConfig, space: &str, faults: Switches) -> Result<Self, Failure> {
        match Self::open_as(config, RespVersion::RESP3, space, faults).await {
            // A server that does not know HELLO.
            Err(Failure::Broken(why)) if why.contains("HELLO") || why.contains("unknown command") => {
                Self::open_as(config, RespVersion::RESP2, space, faults).await
            }
            outcome => outcome,
        }
    }

    async fn open_as(
        config: &FredConfig,
        version: RespVersion,
        space: &str,
        faults: Switches,
    ) -> Result<Self, Failure> {
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
        let within = CONNECT_TIMEOUT * 2;
        let router = tokio::time::timeout(within, client.init()).await.map_err(|_| Failure::Late)??;
        // From here on the router's task ends with this value, whatever happens.
        let mut connection = Self {
            client,
            router,
            texts: script::texts(faults),
            shas: Vec::new(),
            state_key: String::new(),
            entry_prefix: String::new(),
            generation: String::new(),
            fence: 0,
            clock: Mutex::new((0, Instant::now())),
        };
        tokio::time::timeout(within, connection.learn(space)).await.map_err(|_| Failure::Late)??;
        Ok(connection)
    }

    async fn learn(&mut self, space: &str) -> Result<(), Failure> {
        let info: String = self.client.info(Some(InfoKind::Server)).await?;
        let run_id = info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::trim);
        let run_id = run_id.filter(|id| !id.is_empty()).ok_or(Failure::Broken("no run_id in INFO".into()))?;
        self.state_key = format!("{space}:{run_id}}}:state");
        self.entry_prefix = format!("{space}:{run_id}}}:e:");
        for text in &self.texts {
            self.shas.push(self.client.script_load::<String, _>(text.as_str()).await?);
        }
        let time: Vec<u64> =
            self.client.custom(CustomCommand::new_static("TIME", None, false), Vec::<Value>::new()).await?;
        let [seconds, micros] = time[..] else { return Err(Failure::Broken("TIME is not two numbers".into())) };
        self.clock_is(seconds * 1000 + micros / 1000);
        Ok(())
    }

    /// Forgets what stands here of the database under another scope, and notes this one: a pgherd that has not noticed yet that the
    /// server is another one must serve nothing any more before anybody writes under the new name.
    pub(super) async fn take_over(&self, database: &str, scope: &str) -> Result<(), Failure> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.replace(database, scope)).await.map_err(|_| Failure::Late)?
    }

    async fn replace(&self, database: &str, scope: &str) -> Result<(), Failure> {
        let pointer = format!("{database}}}:scope");
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
