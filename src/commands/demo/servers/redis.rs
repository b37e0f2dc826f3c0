//! A throw-away Redis (or Valkey) that keeps nothing on disk.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::supervisor::Supervisor;
use super::{Ground, ServerError, free_port};

/// A running (or stopped) throw-away Redis. Dropping it stops it.
#[derive(Debug)]
pub struct RedisServer {
    // Dropped before the ground, whose keeper waits for the servers' folders to go.
    supervisor: Mutex<Supervisor>,
    port: u16,
    _ground: Arc<Ground>,
}

impl RedisServer {
    /// Starts Redis on a free port of 127.0.0.1; `None` if it is not installed.
    ///
    /// # Errors
    /// It is installed and does not start.
    pub fn start(ground: &Arc<Ground>) -> Result<Option<Self>, ServerError> {
        Self::start_with(ground, &[])
    }

    /// As [`Self::start`], with further arguments of `redis-server`.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(ground: &Arc<Ground>, arguments: &[&str]) -> Result<Option<Self>, ServerError> {
        let Some(program) = ground.binaries().redis.as_ref() else { return Ok(None) };
        let (folder, port) = (ground.server_folder("redis")?, free_port()?);
        let (program, dir, port_text) = (program.to_string_lossy(), folder.to_string_lossy(), port.to_string());
        let mut command = vec![&*program, "--port", &port_text, "--bind", "127.0.0.1", "--dir", &*dir];
        command.extend(["--save", "", "--appendonly", "no"]);
        command.extend(arguments);
        let supervisor = Supervisor::new(ground, &folder, &command, "KILL")?;
        let server = Self { supervisor: Mutex::new(supervisor), port, _ground: ground.clone() };
        server.up()?;
        Ok(Some(server))
    }

    fn up(&self) -> Result<(), ServerError> {
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        self.supervisor().start(|_| answers(address))
    }

    /// Stops it; what it held is lost.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn stop(&self) -> Result<(), ServerError> {
        self.supervisor().stop("TERM")
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// It does not end in time.
    pub fn kill9(&self) -> Result<(), ServerError> {
        self.supervisor().stop("KILL")
    }

    /// Stops it if it runs, and starts it empty on the same port.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn restart(&self) -> Result<(), ServerError> {
        self.kill9()?;
        self.up()
    }

    /// `redis://127.0.0.1:PORT/0`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.supervisor().pid()
    }

    fn supervisor(&self) -> MutexGuard<'_, Supervisor> {
        self.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(&answer == b"+PONG")
    };
    ask().unwrap_or(false)
}
