//! The console's side of the protocol: simple queries, and as much of the extended ones as drivers use for such commands.

use std::collections::HashMap;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::World;
use super::command::{self, Command, Topic};
use super::value::{self, Column, Row};
use super::{control, show};
use crate::error::{Error, ErrorKind};
use crate::limits;
use crate::wire::frame::{self, Frame};
use crate::wire::frontend::{self, Malformed};
use crate::wire::sqlstate::SqlState;
use crate::wire::writer::{self, TransactionStatus};

/// Bytes of a message to the console: a command, or a statement name.
const MESSAGE_BYTES: usize = 64 * 1024;

/// What a client that has proved who it is sees of pgherd as its server.
const PARAMETERS: [(&str, &str); 7] = [
    ("server_version", concat!(env!("CARGO_PKG_VERSION"), "/pgherd")),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "GMT"),
    ("standard_conforming_strings", "on"),
    ("integer_datetimes", "on"),
];

struct Portal {
    commands: Vec<Command>,
    formats: Vec<i16>,
    /// Rows that are still to be fetched; `None` before the first Execute.
    rest: Option<std::vec::IntoIter<Row>>,
}

struct Console<'w, S> {
    world: &'w dyn World,
    is_admin: bool,
    stream: S,
    inbuf: BytesMut,
    out: BytesMut,
    statements: HashMap<Vec<u8>, Vec<Command>>,
    portals: HashMap<Vec<u8>, Portal>,
    /// An error in the extended protocol: everything up to the Sync is dropped.
    skipping: bool,
}

/// Serves a console until its client leaves. `inbuf` holds what it sent already, `out` what is to be sent to it first.
///
/// # Errors
/// The socket failed, or the client broke the protocol; it has been told.
pub async fn serve<S>(
    world: &dyn World,
    is_admin: bool,
    stream: S,
    inbuf: BytesMut,
    mut out: BytesMut,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for (name, value) in PARAMETERS {
        writer::parameter_status(&mut out, name, value);
    }
    // Nothing here runs long enough to be cancelled: a key that no cancel request finds.
    writer::message(&mut out, b'K', |out| out.put_slice(&[0; 8]));
    writer::ready_for_query(&mut out, TransactionStatus::Idle);
    let (statements, portals) = (HashMap::new(), HashMap::new());
    let mut console = Console { world, is_admin, stream, inbuf, out, statements, portals, skipping: false };
    console.run().await
}

impl<S: AsyncRead + AsyncWrite + Unpin> Console<'_, S> {
    async fn run(&mut self) -> Result<(), Error> {
        loop {
            let frame = match frame::cut(&mut self.inbuf, MESSAGE_BYTES) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.flush().await?;
                    if self.stream.read_buf(&mut self.inbuf).await? == 0 {
                        return Ok(());
                    }
                    continue;
                }
                Err(fault) => return Err(self.end(Error::protocol(fault.to_string())).await),
            };
            if frame.tag() == b'X' {
                return self.flush().await;
            }
            if let Err(error) = self.handle(&frame).await {
                if error.is_fatal() {
                    return Err(self.end(error).await);
                }
                writer::error_response(&mut self.out, &error);
                self.skipping = !matches!(frame.tag(), b'Q' | b'F');
                if !self.skipping {
                    writer::ready_for_query(&mut self.out, TransactionStatus::Idle);
                }
            }
        }
    }

    async fn end(&mut self, error: Error) -> Error {
        writer::error_response(&mut self.out, &error);
        let _ = self.flush().await;
        error
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.stream.write_all_buf(&mut self.out).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn handle(&mut self, frame: &Frame) -> Result<(), Error> {
        let body = frame.body();
        match frame.tag() {
            b'S' => {
                self.skipping = false;
                // The implicit transaction is over, and its portals with it.
                self.portals.clear();
                writer::ready_for_query(&mut self.out, TransactionStatus::Idle);
            }
            _ if self.skipping => {}
            b'Q' => self.query(frontend::query(body).map_err(malformed)?).await?,
            b'P' => self.parse(&frontend::parse(body).map_err(malformed)?)?,
            b'B' => self.bind(&frontend::bind(body).map_err(malformed)?)?,
            b'D' => self.describe(frontend::target(body).map_err(malformed)?)?,
            b'E' => self.execute(frontend::execute(body).map_err(malformed)?).await?,
            b'C' => {
                let target = frontend::target(body).map_err(malformed)?;
                if target.is_portal {
                    self.portals.remove(target.name);
                } else {
                    self.statements.remove(target.name);
                }
                writer::close_complete(&mut self.out);
            }
            b'H' => self.flush().await?,
            b'F' => return Err(Error::refused("the console has no functions").hint("Use SHOW HELP.")),
            // As PostgreSQL does where no COPY is under way.
            b'd' | b'c' | b'f' => {}
            tag => return Err(Error::protocol(format!("invalid frontend message type {tag}"))),
        }
        Ok(())
    }

    async fn query(&mut self, text: &[u8]) -> Result<(), Error> {
        let commands = command::read(&as_text(text)?)?;
        if commands.is_empty() {
            writer::empty_query_response(&mut self.out);
        }
        for command in commands {
            self.may(&command)?;
            let mut rows = self.carry_out(&command).await?;
            let columns = columns(&command);
            if !columns.is_empty() {
                value::row_description(&mut self.out, &columns, &[]);
            }
            self.send_rows(&command, &mut rows, &[], usize::MAX);
            writer::command_complete(&mut self.out, command.tag());
        }
        writer::ready_for_query(&mut self.out, TransactionStatus::Idle);
        Ok(())
    }

    fn may(&self, command: &Command) -> Result<(), Error> {
        if self.is_admin || command.is_harmless() {
            return Ok(());
        }
        let message = format!("permission denied: {} is for administrators", command.tag());
        Err(Error::new(ErrorKind::Auth, SqlState::INSUFFICIENT_PRIVILEGE, message)
            .hint("Name the user in [admin] users of proxy.toml."))
    }

    /// Does what the command says; the rows that it shows.
    async fn carry_out(&mut self, command: &Command) -> Result<std::vec::IntoIter<Row>, Error> {
        if !command.is_harmless() {
            // It may take its time: what has been said before must not wait for it.
            self.flush().await?;
            tracing::info!(?command, "console");
        }
        // A client that leaves meanwhile is noticed afterwards; what it asked for goes on, as in PgBouncer.
        let told = control::carry_out(self.world, command).await?;
        Ok(match command {
            Command::Show(Topic::Help) => {
                notice(&mut self.out, "Console usage", &show::help());
                Vec::new()
            }
            Command::Show(topic) => show::rows(self.world, *topic),
            _ => told,
        }
        .into_iter())
    }

    /// Sends rows, so many at most; whether there are more.
    fn send_rows(
        &mut self,
        command: &Command,
        rows: &mut std::vec::IntoIter<Row>,
        formats: &[i16],
        limit: usize,
    ) -> bool {
        let columns = columns(command);
        for row in rows.by_ref().take(limit) {
            value::data_row(&mut self.out, &columns, &row, formats);
        }
        rows.len() > 0
    }

    fn parse(&mut self, parse: &frontend::Parse<'_>) -> Result<(), Error> {
        let commands = command::read(&as_text(parse.text)?)?;
        if commands.len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(Error::new(ErrorKind::Refused, SqlState::SYNTAX_ERROR, message));
        }
        if self.statements.len() >= limits::PREPARED_STATEMENTS {
            return Err(Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements"));
        }
        self.statements.insert(parse.name.to_vec(), commands);
        writer::parse_complete(&mut self.out);
        Ok(())
    }

    fn bind(&mut self, bind: &frontend::Bind<'_>) -> Result<(), Error> {
        if !bind.values.is_empty() {
            return Err(Error::protocol("the console's commands take no parameters"));
        }
        if self.portals.len() >= limits::PORTALS {
            return Err(Error::new(ErrorKind::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, "too many portals"));
        }
        let commands = self.statement(bind.statement)?.clone();
        let portal = Portal { commands, formats: bind.result_formats.clone(), rest: None };
        self.portals.insert(bind.portal.to_vec(), portal);
        writer::bind_complete(&mut self.out);
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<&Vec<Command>, Error> {
        self.statements.get(name).ok_or_else(|| {
            let message = format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name));
            Error::new(ErrorKind::Refused, SqlState::INVALID_STATEMENT_NAME, message)
        })
    }

    fn describe(&mut self, target: frontend::Target<'_>) -> Result<(), Error> {
        let (commands, formats) = if target.is_portal {
            let portal = self.portals.get(target.name).ok_or_else(|| no_portal(target.name))?;
            (portal.commands.clone(), portal.formats.clone())
        } else {
            let commands = self.statement(target.name)?.clone();
            writer::message(&mut self.out, b't', |out| out.put_i16(0));
            (commands, Vec::new())
        };
        match commands.first().map(columns).filter(|columns| !columns.is_empty()) {
            Some(columns) => value::row_description(&mut self.out, &columns, &formats),
            None => writer::no_data(&mut self.out),
        }
        Ok(())
    }

    async fn execute(&mut self, execute: frontend::Execute<'_>) -> Result<(), Error> {
        // Taken out for as long as it runs.
        let mut portal = self.portals.remove(execute.portal).ok_or_else(|| no_portal(execute.portal))?;
        let Some(command) = portal.commands.first().cloned() else {
            writer::empty_query_response(&mut self.out);
            return Ok(());
        };
        self.may(&command)?;
        let mut rows = match portal.rest.take() {
            Some(rest) => rest,
            None => self.carry_out(&command).await?,
        };
        let limit = usize::try_from(execute.max_rows).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        if self.send_rows(&command, &mut rows, &portal.formats, limit) {
            portal.rest = Some(rows);
            writer::portal_suspended(&mut self.out);
        } else {
            portal.rest = Some(Vec::new().into_iter());
            writer::command_complete(&mut self.out, command.tag());
        }
        self.portals.insert(execute.portal.to_vec(), portal);
        Ok(())
    }
}

fn columns(command: &Command) -> Vec<Column> {
    match command {
        Command::Show(topic) => show::columns(*topic),
        Command::Purge(..) => control::PURGED.to_vec(),
        _ => Vec::new(),
    }
}

fn notice(out: &mut BytesMut, message: &str, detail: &str) {
    writer::message(out, b'N', |out| {
        for (code, text) in [(b'S', "NOTICE"), (b'V', "NOTICE"), (b'C', "00000"), (b'M', message), (b'D', detail)] {
            out.put_u8(code);
            writer::cstr(out, text.as_bytes());
        }
        out.put_u8(0);
    });
}

fn as_text(text: &[u8]) -> Result<String, Error> {
    String::from_utf8(text.to_vec()).map_err(|_| {
        let message = "invalid byte sequence for encoding \"UTF8\"";
        Error::new(ErrorKind::Refused, SqlState::CHARACTER_NOT_IN_REPERTOIRE, message)
    })
}

fn no_portal(name: &[u8]) -> Error {
    let message = format!("portal \"{}\" does not exist", String::from_utf8_lossy(name));
    Error::new(ErrorKind::Refused, SqlState::INVALID_CURSOR_NAME, message)
}

fn malformed(what: Malformed) -> Error {
    Error::protocol("invalid message format").detail(what.0)
}
