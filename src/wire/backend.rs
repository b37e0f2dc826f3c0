//! Reading the backend messages whose content pgherd itself needs. Nothing here trusts a length or an encoding.

use std::borrow::Cow;
use std::fmt;

use bytes::BytesMut;

use super::frame::Body;
use super::frontend::Malformed;
use super::sqlstate::SqlState;
use super::startup::CANCEL_SECRET_BYTES;
use super::writer::{self, TransactionStatus};

/// The fields of an ErrorResponse or a NoticeResponse (PostgreSQL manual, 55.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorFields<'a> {
    fields: Vec<(u8, Cow<'a, str>)>,
}

impl<'a> ErrorFields<'a> {
    /// Reads the body of an `E` or `N`; texts that are not UTF-8 are shown as far as they are.
    ///
    /// # Errors
    /// A field without its NUL, or a body without its terminator.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Body::new(body);
        let mut fields = Vec::new();
        loop {
            match body.u8() {
                Some(0) if body.rest().is_empty() => return Ok(Self { fields }),
                Some(0) => return Err(Malformed("bytes behind its last field")),
                Some(code) => {
                    let text = body.cstr().ok_or(Malformed("a text has no end"))?;
                    fields.push((code, String::from_utf8_lossy(text)));
                }
                None => return Err(Malformed("its terminator is missing")),
            }
        }
    }

    /// The field with that code, if it was sent.
    pub fn get(&self, code: u8) -> Option<&str> {
        self.fields.iter().find(|(field, _)| *field == code).map(|(_, text)| text.as_ref())
    }

    /// `ERROR`, `FATAL`, `PANIC`, or a notice's level, never translated where the server sends that (9.6 and later).
    pub fn severity(&self) -> &str {
        self.get(b'V').or_else(|| self.get(b'S')).unwrap_or("ERROR")
    }

    /// The SQLSTATE; `XX000` where none was sent.
    pub fn code(&self) -> &str {
        self.get(b'C').unwrap_or("XX000")
    }

    /// The primary message.
    pub fn message(&self) -> &str {
        self.get(b'M').unwrap_or("(no message)")
    }

    /// The secondary message.
    pub fn detail(&self) -> Option<&str> {
        self.get(b'D')
    }

    /// What the server suggests.
    pub fn hint(&self) -> Option<&str> {
        self.get(b'H')
    }

    /// Whether the server ends the session with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity(), "FATAL" | "PANIC")
    }

    /// The fields that outlive the message.
    pub fn to_server_error(&self) -> ServerError {
        ServerError {
            severity: self.severity().to_owned(),
            code: self.code().to_owned(),
            message: self.message().to_owned(),
            detail: self.detail().map(str::to_owned),
            hint: self.hint().map(str::to_owned),
        }
    }
}

/// An ErrorResponse's body with another name where `from` first stands in its message, as a whole name.
pub fn renamed(body: &[u8], from: &[u8], to: &[u8]) -> BytesMut {
    let mut told = BytesMut::with_capacity(body.len() + to.len());
    for field in body.split_inclusive(|&byte| byte == 0) {
        // `pgherd_1` is not the beginning of `pgherd_10`.
        let is_whole = |at: &usize| field.get(at + from.len()).is_none_or(|next| !next.is_ascii_digit());
        let places = field.windows(from.len().max(1)).enumerate().filter(|(_, part)| *part == from);
        let at = places.map(|(at, _)| at).find(is_whole).filter(|_| field.first() == Some(&b'M'));
        match at.and_then(|at| Some((field.get(..at)?, field.get(at + from.len()..)?))) {
            Some((before, behind)) => [before, to, behind].iter().for_each(|part| told.extend_from_slice(part)),
            None => told.extend_from_slice(field),
        }
    }
    told
}

/// An ErrorResponse about a statement that the server was given without a name, with the client's name for it.
pub fn with_statement_name(body: &[u8], statement: &[u8]) -> BytesMut {
    let is_about_it = ErrorFields::parse(body).is_ok_and(|fields| fields.code() == SqlState::PROTOCOL_VIOLATION.code());
    let (from, to) =
        if is_about_it { (&b"\"\""[..], [b"\"", statement, b"\""].concat()) } else { (&b""[..], Vec::new()) };
    let mut message = BytesMut::new();
    writer::message(&mut message, b'E', |out| out.extend_from_slice(&renamed(body, from, &to)));
    message
}

/// An error that a server sent, kept as the cause of one of pgherd's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError {
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// The secondary message.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.code)
    }
}

impl std::error::Error for ServerError {}

/// `S`: a setting that the server reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterStatus<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> ParameterStatus<'a> {
    /// Reads the body of an `S`.
    ///
    /// # Errors
    /// A text without its NUL, or bytes behind the last.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Body::new(body);
        let (name, value) = (body.cstr(), body.cstr());
        match (name, value) {
            (Some(name), Some(value)) if body.rest().is_empty() => Ok(Self { name, value }),
            (Some(_), Some(_)) => Err(Malformed("bytes behind its last field")),
            _ => Err(Malformed("a text has no end")),
        }
    }
}

/// `K`: what a CancelRequest for this connection must carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendKeyData<'a> {
    /// The server's process.
    pub pid: i32,
    /// The secret: four bytes in protocol 3.0, up to 256 in 3.2.
    pub secret: &'a [u8],
}

impl<'a> BackendKeyData<'a> {
    /// Reads the body of a `K`.
    ///
    /// # Errors
    /// A process or secret that is missing, or a secret over 256 bytes.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Body::new(body);
        let pid = body.i32().ok_or(Malformed("the process is missing"))?;
        match body.rest() {
            [] => Err(Malformed("the secret is missing")),
            secret if secret.len() > CANCEL_SECRET_BYTES => Err(Malformed("the secret is too long")),
            secret => Ok(Self { pid, secret }),
        }
    }
}

/// Reads the body of a `Z`.
///
/// # Errors
/// Anything but one of the three status bytes.
pub fn ready_for_query(body: &[u8]) -> Result<TransactionStatus, Malformed> {
    match body {
        [byte] => TransactionStatus::from_byte(*byte).ok_or(Malformed("its status is unknown")),
        _ => Err(Malformed("its status is not one byte")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_is_another_one_in_the_message_and_nowhere_else() {
        let body = b"SERROR\0Mstatement \"p_1\" is not \"p_10\"\0Dp_10\0\0";
        let told = renamed(body, b"p_10", b"mine");
        assert_eq!(&told[..], b"SERROR\0Mstatement \"p_1\" is not \"mine\"\0Dp_10\0\0");
        assert_eq!(&renamed(body, b"p_1", b"mine")[..], b"SERROR\0Mstatement \"mine\" is not \"p_10\"\0Dp_10\0\0");
        assert_eq!(&renamed(body, b"", b"mine")[..], body);
    }

    #[test]
    fn an_error_is_read_by_its_field_codes() {
        let error = ErrorFields::parse(b"SFEHLER\0VFATAL\0C28P01\0Mno\0Hdo\0\0").expect("valid");
        assert_eq!((error.severity(), error.code(), error.message()), ("FATAL", "28P01", "no"));
        assert_eq!((error.hint(), error.detail(), error.is_fatal()), (Some("do"), None, true));
        assert_eq!(error.to_server_error().to_string(), "FATAL: no (SQLSTATE 28P01)");
    }

    #[test]
    fn an_error_that_is_cut_short_is_malformed() {
        for body in [&b""[..], b"S", b"SERROR", b"SERROR\0", b"SERROR\0\0x"] {
            assert!(ErrorFields::parse(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn a_latin1_message_is_shown_as_far_as_it_is_utf8() {
        assert_eq!(ErrorFields::parse(b"Mcaf\xe9\0\0").expect("valid").message(), "caf\u{fffd}");
    }

    #[test]
    fn key_data_takes_a_secret_of_up_to_256_bytes() {
        let body = |len: usize| [&[0, 0, 0, 5][..], &vec![1; len]].concat();
        for len in [4, 256] {
            assert_eq!(BackendKeyData::parse(&body(len)).map(|key| (key.pid, key.secret.len())), Ok((5, len)));
        }
        assert!(BackendKeyData::parse(&body(0)).is_err() && BackendKeyData::parse(&body(257)).is_err());
    }

    #[test]
    fn statuses_and_parameters_end_where_their_fields_end() {
        assert_eq!(ready_for_query(b"T"), Ok(TransactionStatus::InTransaction));
        assert!(ready_for_query(b"").is_err() && ready_for_query(b"II").is_err() && ready_for_query(b"X").is_err());
        assert_eq!(ParameterStatus::parse(b"a\0b\0"), Ok(ParameterStatus { name: b"a", value: b"b" }));
        assert!(ParameterStatus::parse(b"a\0b").is_err() && ParameterStatus::parse(b"a\0b\0c").is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_a_message_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = ErrorFields::parse(&body);
            let _ = ParameterStatus::parse(&body);
            let _ = BackendKeyData::parse(&body);
            let _ = ready_for_query(&body);
        }
    }
}
