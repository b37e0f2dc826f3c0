//! Authentication messages, both ways: `R` from the server, `p` from the client (PostgreSQL manual, 55.2.1).

use bytes::{BufMut, BytesMut};

use super::frame::Body;
use super::frontend::Malformed;
use super::writer::{cstr, message};

/// What a server's `R` asks for or says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// The client is who it says.
    Ok,
    /// The password itself is wanted.
    CleartextPassword,
    /// An md5 of password, user and this salt is wanted.
    Md5Password {
        /// The salt.
        salt: [u8; 4],
    },
    /// A SASL exchange with one of these mechanisms is wanted.
    Sasl {
        /// Mechanism names, the server's preference first.
        mechanisms: Vec<&'a [u8]>,
    },
    /// The server's next SASL message.
    SaslContinue(&'a [u8]),
    /// The server's last SASL message.
    SaslFinal(&'a [u8]),
    /// A method that pgherd does not have: Kerberos, GSSAPI, SSPI and such.
    Other(i32),
}

impl<'a> Authentication<'a> {
    /// Reads the body of an `R`.
    ///
    /// # Errors
    /// A field that is missing, cut short, or followed by bytes that belong to none.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Body::new(body);
        let kind = body.i32().ok_or(Malformed("its kind is missing"))?;
        let rest = body.rest();
        Ok(match kind {
            0 if rest.is_empty() => Self::Ok,
            3 if rest.is_empty() => Self::CleartextPassword,
            0 | 3 => return Err(Malformed("bytes behind its last field")),
            5 => Self::Md5Password { salt: rest.try_into().map_err(|_| Malformed("its salt is not four bytes"))? },
            10 => Self::Sasl { mechanisms: mechanisms(body)? },
            11 => Self::SaslContinue(rest),
            12 => Self::SaslFinal(rest),
            other => Self::Other(other),
        })
    }
}

fn mechanisms(mut body: Body<'_>) -> Result<Vec<&[u8]>, Malformed> {
    let mut mechanisms = Vec::new();
    loop {
        match body.cstr() {
            Some([]) if body.rest().is_empty() => return Ok(mechanisms),
            Some([]) => return Err(Malformed("bytes behind its last field")),
            Some(mechanism) => mechanisms.push(mechanism),
            None => return Err(Malformed("a text has no end")),
        }
    }
}

/// A client's first SASL message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslInitialResponse<'a> {
    /// The mechanism that the client chose.
    pub mechanism: &'a [u8],
    /// The mechanism's first message, if the client sent one.
    pub data: Option<&'a [u8]>,
}

impl<'a> SaslInitialResponse<'a> {
    /// Reads the body of a `p` that answers [`Authentication::Sasl`].
    ///
    /// # Errors
    /// As [`Authentication::parse`].
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut body = Body::new(body);
        let mechanism = body.cstr().ok_or(Malformed("a text has no end"))?;
        let len = body.i32().ok_or(Malformed("the response's length is missing"))?;
        let data = match usize::try_from(len) {
            Ok(len) => Some(body.bytes(len).ok_or(Malformed("the response is cut short"))?),
            Err(_) if len == -1 => None,
            Err(_) => return Err(Malformed("the response's length is negative")),
        };
        if body.rest().is_empty() {
            Ok(Self { mechanism, data })
        } else {
            Err(Malformed("bytes behind its last field"))
        }
    }
}

/// Reads the body of a `p` that holds a password or an md5.
///
/// # Errors
/// A text without its NUL, or bytes behind it.
pub fn password(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut body = Body::new(body);
    let password = body.cstr().ok_or(Malformed("a text has no end"))?;
    if body.rest().is_empty() { Ok(password) } else { Err(Malformed("bytes behind its last field")) }
}

/// Writes an `R`.
pub fn request(out: &mut BytesMut, authentication: &Authentication<'_>) {
    message(out, b'R', |out| match authentication {
        Authentication::Ok => out.put_i32(0),
        Authentication::CleartextPassword => out.put_i32(3),
        Authentication::Md5Password { salt } => {
            out.put_i32(5);
            out.put_slice(salt);
        }
        Authentication::Sasl { mechanisms } => {
            out.put_i32(10);
            mechanisms.iter().for_each(|mechanism| cstr(out, mechanism));
            out.put_u8(0);
        }
        Authentication::SaslContinue(data) => {
            out.put_i32(11);
            out.put_slice(data);
        }
        Authentication::SaslFinal(data) => {
            out.put_i32(12);
            out.put_slice(data);
        }
        Authentication::Other(kind) => out.put_i32(*kind),
    });
}

/// Writes a `p` with a password or an md5.
pub fn password_message(out: &mut BytesMut, password: &[u8]) {
    message(out, b'p', |out| cstr(out, password));
}

/// Writes a `p` that opens a SASL exchange.
pub fn sasl_initial_response(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    message(out, b'p', |out| {
        cstr(out, mechanism.as_bytes());
        out.put_i32(i32::try_from(data.len()).unwrap_or(i32::MAX));
        out.put_slice(data);
    });
}

/// Writes a `p` that goes on with a SASL exchange.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    message(out, b'p', |out| out.put_slice(data));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::HEADER_LEN;

    #[test]
    fn requests_are_read_as_they_were_written() {
        let all = [
            Authentication::Ok,
            Authentication::CleartextPassword,
            Authentication::Md5Password { salt: [1, 2, 3, 4] },
            Authentication::Sasl { mechanisms: vec![b"SCRAM-SHA-256-PLUS", b"SCRAM-SHA-256"] },
            Authentication::SaslContinue(b"r=x"),
            Authentication::SaslFinal(b"v=x"),
            Authentication::Other(7),
        ];
        for authentication in all {
            let mut out = BytesMut::new();
            request(&mut out, &authentication);
            assert_eq!(Authentication::parse(&out[HEADER_LEN..]), Ok(authentication));
        }
    }

    #[test]
    fn requests_that_are_cut_short_are_malformed() {
        let bodies = [
            &b""[..],
            b"\0\0\0",
            b"\0\0\0\0x",
            b"\0\0\0\x05abc",
            b"\0\0\0\x0aSCRAM",
            b"\0\0\0\x0aSCRAM\0",
            b"\0\0\0\x0a\0x",
        ];
        for body in bodies {
            assert!(Authentication::parse(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn an_initial_response_keeps_none_apart_from_empty() {
        let parse = |body| SaslInitialResponse::parse(body).map(|response| response.data);
        assert_eq!(parse(b"M\0\xff\xff\xff\xff"), Ok(None));
        assert_eq!(parse(b"M\0\0\0\0\0"), Ok(Some(&b""[..])));
        for body in [&b"M"[..], b"M\0\0\0\0\x02x", b"M\0\0\0\0\x01xy", b"M\0\xff\xff\xff\xfe", b"M\0\0\0"] {
            assert!(parse(body).is_err(), "{body:?}");
        }
        let mut out = BytesMut::new();
        sasl_initial_response(&mut out, "M", b"n,,");
        assert_eq!(parse(&out[HEADER_LEN..]), Ok(Some(&b"n,,"[..])));
    }

    #[test]
    fn a_password_ends_at_its_nul() {
        assert_eq!(password(b"secret\0"), Ok(&b"secret"[..]));
        assert!(password(b"secret").is_err() && password(b"a\0b\0").is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_a_message_or_an_error(body in proptest::collection::vec(any::<u8>(), 0..100), kind in 0i32..14) {
            let _ = Authentication::parse(&[&kind.to_be_bytes(), &body[..]].concat());
            let _ = SaslInitialResponse::parse(&body);
            let _ = password(&body);
        }
    }
}
