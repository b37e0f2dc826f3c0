//! The floor under every proxy: each client's bytes copied to a server connection of its own and back, by one thread that looks
//! at none of them.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use pgherd::commands::demo::servers::ServerError;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::failed;

/// A forwarder, until it is dropped.
pub struct Forwarder {
    pub port: u16,
    /// Where the kernel says how long its thread has run.
    schedstat: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts forwarding to that port.
    ///
    /// # Errors
    /// There is no port to listen on.
    pub fn start(target: u16) -> Result<Self, ServerError> {
        let runtime = Builder::new_current_thread().enable_io().build().map_err(|error| failed("forwarder", error))?;
        let listener =
            runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).map_err(|error| failed("listen", error))?;
        let port = listener.local_addr().map_err(|error| failed("listen", error))?.port();
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let me = fs::read_link("/proc/thread-self").map(|me| PathBuf::from("/proc").join(me).join("schedstat"));
            let _ = tell.send(me.unwrap_or_default());
            runtime.block_on(async {
                tokio::select! {
                    () = accept(&listener, target) => {}
                    _ = stopped => {}
                }
            });
        });
        let schedstat = told.recv().map_err(|error| failed("forwarder", error))?;
        Ok(Self { port, schedstat, stop: Some(stop), thread: Some(thread) })
    }

    /// Processor time that its thread has used.
    pub fn cpu_time(&self) -> Option<Duration> {
        let nanoseconds = fs::read_to_string(&self.schedstat).ok()?.split_whitespace().next()?.parse().ok()?;
        Some(Duration::from_nanos(nanoseconds))
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: &TcpListener, target: u16) {
    while let Ok((mut client, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut server = TcpStream::connect(("127.0.0.1", target)).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}
