//! The backend and frontend messages that pgherd writes itself, straight into a buffer (PostgreSQL manual, 55.7).

use bytes::{BufMut, BytesMut};

use crate::error::Error;

/// Transaction status of a ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionStatus {
    /// `I`: no transaction.
    #[default]
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a transaction block that failed.
    Failed,
}

impl TransactionStatus {
    /// The byte on the wire.
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::InTransaction => b'T',
            Self::Failed => b'E',
        }
    }

    /// The status of that byte, if it is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }
}

/// Writes one message: `fill` appends the body, the length is put in afterwards.
pub fn message(out: &mut BytesMut, tag: u8, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_i32(0);
    fill(out);
    let len = i32::try_from(out.len() - at).unwrap_or(i32::MAX);
    out[at..at + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends `text` and a NUL; bytes from a NUL on are left out, since the protocol could not carry them.
pub fn cstr(out: &mut BytesMut, text: &[u8]) {
    let end = memchr::memchr(0, text).unwrap_or(text.len());
    out.put_slice(&text[..end]);
    out.put_u8(0);
}

/// `Z`
pub fn ready_for_query(out: &mut BytesMut, status: TransactionStatus) {
    out.put_slice(&[b'Z', 0, 0, 0, 5, status.byte()]);
}

/// `1`
pub fn parse_complete(out: &mut BytesMut) {
    out.put_slice(b"1\0\0\0\x04");
}

/// `2`
pub fn bind_complete(out: &mut BytesMut) {
    out.put_slice(b"2\0\0\0\x04");
}

/// `3`
pub fn close_complete(out: &mut BytesMut) {
    out.put_slice(b"3\0\0\0\x04");
}

/// `n`
pub fn no_data(out: &mut BytesMut) {
    out.put_slice(b"n\0\0\0\x04");
}

/// `I`
pub fn empty_query_response(out: &mut BytesMut) {
    out.put_slice(b"I\0\0\0\x04");
}

/// `s`
pub fn portal_suspended(out: &mut BytesMut) {
    out.put_slice(b"s\0\0\0\x04");
}

/// `C`, with a tag such as `SELECT 5`
pub fn command_complete(out: &mut BytesMut, tag: &str) {
    message(out, b'C', |out| cstr(out, tag.as_bytes()));
}

/// `S` from the backend
pub fn parameter_status(out: &mut BytesMut, name: &str, value: &str) {
    message(out, b'S', |out| {
        cstr(out, name.as_bytes());
        cstr(out, value.as_bytes());
    });
}

/// `T` for columns of type text with no table behind them.
pub fn text_row_description(out: &mut BytesMut, columns: &[&str]) {
    const TEXT_OID: u32 = 25;
    message(out, b'T', |out| {
        out.put_i16(i16::try_from(columns.len()).unwrap_or(i16::MAX));
        for column in columns {
            cstr(out, column.as_bytes());
            out.put_i32(0);
            out.put_i16(0);
            out.put_u32(TEXT_OID);
            out.put_i16(-1);
            out.put_i32(-1);
            out.put_i16(0);
        }
    });
}

/// `D` from the values' bytes; `None` is NULL.
pub fn data_row<'a>(out: &mut BytesMut, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) {
    message(out, b'D', |out| {
        out.put_i16(i16::try_from(values.len()).unwrap_or(i16::MAX));
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(bytes) => {
                    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
                    out.put_slice(bytes);
                }
            }
        }
    });
}

/// `E` for an error of pgherd's own.
pub fn error_response(out: &mut BytesMut, error: &Error) {
    let severity = if error.is_fatal() { "FATAL" } else { "ERROR" };
    message(out, b'E', |out| {
        if let Some(body) = error.verbatim_body() {
            out.put_slice(body);
            return;
        }
        let mut field = |code: u8, text: &str| {
            out.put_u8(code);
            cstr(out, text.as_bytes());
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', error.sqlstate().code());
        field(b'M', error.message());
        if let Some(detail) = error.detail_text() {
            field(b'D', detail);
        }
        if let Some(hint) = error.hint_text() {
            field(b'H', hint);
        }
        out.put_u8(0);
    });
}

/// `N` with severity WARNING.
pub fn warning(out: &mut BytesMut, code: &str, text: &str, detail: &str) {
    message(out, b'N', |out| {
        for (field, text) in [(b'S', "WARNING"), (b'V', "WARNING"), (b'C', code), (b'M', text), (b'D', detail)] {
            out.put_u8(field);
            cstr(out, text.as_bytes());
        }
        out.put_u8(0);
    });
}

/// `Q` from the frontend
pub fn query(out: &mut BytesMut, text: &[u8]) {
    message(out, b'Q', |out| cstr(out, text));
}

/// `P` from the frontend
pub fn parse(out: &mut BytesMut, name: &[u8], text: &[u8], types: &[u32]) {
    message(out, b'P', |out| {
        cstr(out, name);
        cstr(out, text);
        out.put_i16(i16::try_from(types.len()).unwrap_or(i16::MAX));
        types.iter().for_each(|&oid| out.put_u32(oid));
    });
}

/// `D` from the frontend; `kind` is `b'S'` for a statement, `b'P'` for a portal.
pub fn describe(out: &mut BytesMut, kind: u8, name: &[u8]) {
    message(out, b'D', |out| {
        out.put_u8(kind);
        cstr(out, name);
    });
}

/// `C` from the frontend; `kind` as in [`describe`].
pub fn close(out: &mut BytesMut, kind: u8, name: &[u8]) {
    message(out, b'C', |out| {
        out.put_u8(kind);
        cstr(out, name);
    });
}

/// `E` from the frontend; `max_rows` of 0 is all.
pub fn execute(out: &mut BytesMut, portal: &[u8], max_rows: i32) {
    message(out, b'E', |out| {
        cstr(out, portal);
        out.put_i32(max_rows);
    });
}

/// `S` from the frontend
pub fn sync(out: &mut BytesMut) {
    out.put_slice(b"S\0\0\0\x04");
}

/// `H` from the frontend
pub fn flush(out: &mut BytesMut) {
    out.put_slice(b"H\0\0\0\x04");
}

/// `X` from the frontend
pub fn terminate(out: &mut BytesMut) {
    out.put_slice(b"X\0\0\0\x04");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sqlstate::SqlState;

    #[test]
    fn a_message_carries_its_own_length() {
        let mut out = BytesMut::new();
        command_complete(&mut out, "SELECT 1");
        assert_eq!(&out[..], b"C\0\0\0\x0dSELECT 1\0");
    }

    #[test]
    fn an_error_has_severity_code_message_and_hint() {
        let mut out = BytesMut::new();
        let error = Error::refused("no").hint("do");
        error_response(&mut out, &error);
        assert_eq!(error.sqlstate(), SqlState::FEATURE_NOT_SUPPORTED);
        assert_eq!(&out[5..], b"SERROR\0VERROR\0C0A000\0Mno\0Hdo\0\0");
    }

    #[test]
    fn a_nul_inside_a_text_cannot_start_another_field() {
        let mut out = BytesMut::new();
        cstr(&mut out, b"a\0b");
        assert_eq!(&out[..], b"a\0");
    }
}
