//! Every bound on what a peer controls, named once. Each is tested at the limit and one past it.

/// Bytes of a startup packet (PostgreSQL's MAX_STARTUP_PACKET_LENGTH).
pub const STARTUP_PACKET_BYTES: usize = 10_000;
/// Bytes of a password or SASL message before authentication is done.
pub const AUTH_MESSAGE_BYTES: usize = 65_535;
/// Bytes of the longest message that PostgreSQL itself would take (1 GiB less one).
pub const MESSAGE_BYTES: usize = 0x3fff_ffff;
/// Bytes of a statement's text that pgherd holds to read it; longer ones are refused.
pub const STATEMENT_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of a Bind that pgherd holds when it must look at the parameters; longer ones pass through or are refused.
pub const BIND_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of an extended-protocol flight held back until its plan is known.
pub const FLIGHT_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of statement text that is parsed into a tree; longer texts are opaque.
pub const PARSED_STATEMENT_BYTES: usize = 256 * 1024;
/// Nesting depth at which parsing gives up and a statement becomes opaque.
pub const PARSE_DEPTH: usize = 64;
/// Named prepared statements of one client.
pub const PREPARED_STATEMENTS: usize = 10_000;
/// What the unnamed statement of one client was, one Parse behind another, in a pipeline that is not answered.
pub const UNNAMED_BEFORE: usize = 64;
/// Channels that one client listens to, and steps of one transaction about them.
pub const CHANNELS: usize = 10_000;
/// Open portals of one client.
pub const PORTALS: usize = 1_000;
/// Bytes read from a socket at once.
pub const READ_CHUNK_BYTES: usize = 32 * 1024;
/// Bytes queued for a client before its server's socket is no longer read.
pub const CLIENT_QUEUE_BYTES: usize = 256 * 1024;
/// Bytes queued for a server before its client's socket is no longer read.
pub const SERVER_QUEUE_BYTES: usize = 256 * 1024;
/// Answers that a server may owe before its client's next message must wait.
pub const SERVER_QUEUE_MESSAGES: usize = 64 * 1024;
/// Settings of one session that are tracked and replayed.
pub const SETTINGS: usize = 1_000;
/// Prepared statements kept on one server connection before the least recently used is closed.
pub const SERVER_STATEMENTS: usize = 500;
/// Bytes of memory for memoized statement facts.
pub const FACTS_MEMO_BYTES: u64 = 64 * 1024 * 1024;
/// Tokens in a row, commas and inner parentheses aside, beyond which a statement is not parsed: they can make a tree that deep.
pub const PARSE_CHAIN_TOKENS: usize = 4_000;
/// Connections to the HTTP side at once.
pub const HTTP_CONNECTIONS: usize = 64;
/// Bytes of an HTTP request's head (hyper takes no less).
pub const HTTP_HEAD_BYTES: usize = 8192;
