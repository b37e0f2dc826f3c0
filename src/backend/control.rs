//! Connections of pgherd's own for reading catalogs and asking about servers, by tokio-postgres.

use tokio_postgres::{Client, NoTls};

use super::connect::{self, Login, lost};
use crate::config::model::ServerAddress;
use crate::error::{Error, ErrorKind};
use crate::wire::sqlstate::SqlState;

/// A connection of pgherd's own. It ends when this is dropped.
pub struct Control {
    /// Runs statements.
    pub client: Client,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects for pgherd's own purposes, encrypted as `sslmode` says.
///
/// # Errors
/// The server cannot be reached, or refuses the login.
pub async fn connect(address: &ServerAddress, login: &Login) -> Result<Control, Error> {
    let connecting = async {
        let stream = connect::open(address, &login.tls).await?;
        let mut config = tokio_postgres::Config::new();
        config.user(&login.user).dbname(&login.database).application_name("pgherd control");
        // The stream is encrypted already where it should be.
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        if let Some(password) = &login.password {
            config.password(password.expose());
        }
        let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|error| refused(address, error))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a control connection ended");
            }
        });
        Ok(Control { client, task })
    };
    tokio::time::timeout(login.connect_timeout, connecting)
        .await
        .unwrap_or_else(|_| Err(lost(address, std::io::ErrorKind::TimedOut.into())))
}

fn refused(address: &ServerAddress, error: tokio_postgres::Error) -> Error {
    Error::new(ErrorKind::Backend, SqlState::CANNOT_CONNECT, format!("cannot log in on {address} to read its catalog"))
        .cause(error)
}
