//! The one error type that can reach a client: a kind for metrics, a cause for the log, and a safe text with SQLSTATE and hint.

use std::fmt;

use bytes::Bytes;

use crate::wire::sqlstate::SqlState;

/// What went wrong, coarse enough to be a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The TOML or a command-line argument is wrong.
    Config,
    /// A peer sent bytes that PostgreSQL's protocol does not allow.
    Protocol,
    /// A client could not be authenticated or may not do this.
    Auth,
    /// A limit named in `limits` or in the TOML was reached.
    Limit,
    /// A server could not be reached, refused us, or went away.
    Backend,
    /// No server connection became free in time.
    Pool,
    /// The statement is one that pgherd will not guess about (`0A000`).
    Refused,
    /// A statement ran into a timeout or was cancelled.
    Cancelled,
    /// The result cache or its Redis failed in a way the client must know of.
    Cache,
    /// A socket failed.
    Io,
    /// pgherd is shutting down.
    Shutdown,
    /// A fault of pgherd itself.
    Internal,
}

impl ErrorKind {
    /// The label value used in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Protocol => "protocol",
            Self::Auth => "auth",
            Self::Limit => "limit",
            Self::Backend => "backend",
            Self::Pool => "pool",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Cache => "cache",
            Self::Io => "io",
            Self::Shutdown => "shutdown",
            Self::Internal => "internal",
        }
    }
}

/// An error on its way to a client: see the module's description.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    sqlstate: SqlState,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    fatal: bool,
    verbatim: Option<Bytes>,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error that ends the statement, not the session. `message` is shown to the client: no secrets.
    pub fn new(kind: ErrorKind, sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            fatal: false,
            verbatim: None,
            cause: None,
        }))
    }

    /// A refusal (`0A000`) naming the clause that pgherd will not guess about.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, SqlState::FEATURE_NOT_SUPPORTED, message)
    }

    /// A violation of the protocol by the client; ends the session.
    pub fn protocol(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, SqlState::PROTOCOL_VIOLATION, message).fatal()
    }

    /// A fault of pgherd itself.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, SqlState::INTERNAL_ERROR, message)
    }

    /// Adds what the client can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds a secondary message with more of the circumstances.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// What the client is told instead: the body of a server's ErrorResponse that speaks of the client's own statement.
    #[must_use]
    pub fn verbatim(mut self, body: Bytes) -> Self {
        self.0.verbatim = Some(body);
        self
    }

    /// Adds the error below this one, for the log only.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    /// The same error for somebody else, without what is below it.
    #[must_use]
    pub fn again(&self) -> Self {
        let Inner { kind, sqlstate, message, detail, hint, fatal, verbatim, cause: _ } = &*self.0;
        let (kind, sqlstate, fatal) = (*kind, *sqlstate, *fatal);
        let (message, detail, hint, verbatim) = (message.clone(), detail.clone(), hint.clone(), verbatim.clone());
        Self(Box::new(Inner { kind, sqlstate, message, detail, hint, fatal, verbatim, cause: None }))
    }

    /// Marks the error as one that ends the session (severity FATAL).
    #[must_use]
    pub fn fatal(mut self) -> Self {
        self.0.fatal = true;
        self
    }

    /// The metric label.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The five-character code that the client sees.
    pub fn sqlstate(&self) -> SqlState {
        self.0.sqlstate
    }

    /// The primary message that the client sees.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The secondary message, if there is one.
    pub fn detail_text(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// The hint, if there is one.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The body of the ErrorResponse that the client is told as it is, unless the session ends with the error.
    pub fn verbatim_body(&self) -> Option<&[u8]> {
        self.0.verbatim.as_deref().filter(|_| !self.0.fatal)
    }

    /// Whether the session ends with it.
    pub fn is_fatal(&self) -> bool {
        self.0.fatal
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.0.message, self.0.sqlstate)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("sqlstate", &self.0.sqlstate)
            .field("message", &self.0.message)
            .field("detail", &self.0.detail)
            .field("hint", &self.0.hint)
            .field("cause", &self.0.cause)
            .finish()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.cause.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(ErrorKind::Io, SqlState::CONNECTION_FAILURE, "connection lost").cause(error).fatal()
    }
}
