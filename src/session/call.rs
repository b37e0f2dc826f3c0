//! FunctionCall, the protocol's fast path: a function by its OID, so that no text says what it does to the session.

use super::Session;
use super::pin::Pin;
use crate::backend::expect::Expect;
use crate::error::Error;
use crate::sql::facts::Effect;
use crate::wire::frame::{Body, Frame};
use crate::wire::writer::TransactionStatus;

/// `set_config(text, text, boolean)`, in every version.
const SET_CONFIG: u32 = 2078;
/// The functions of libpq's large object interface: what they open is closed with its transaction.
const LARGE_OBJECTS: [u32; 15] = [715, 764, 765, 767, 952, 953, 954, 955, 956, 957, 958, 964, 1004, 3170, 3171];

impl Session {
    pub(super) async fn on_function_call(&mut self, frame: Frame) -> Result<(), Error> {
        if self.status == TransactionStatus::Failed && self.server.is_none() {
            return Err(super::planned::aborted());
        }
        let target = self.default_target();
        self.attach(target).await?;
        self.note_opaque_write().await?;
        self.note_called(frame.body());
        let server = self.attach(target).await?;
        server.outbuf.extend_from_slice(&frame.bytes);
        server.expects.push(Expect::FunctionCall);
        Ok(())
    }

    /// Notes what the call may do to the session: what cannot be known stays on the server connection, and that with the client.
    fn note_called(&mut self, body: &[u8]) {
        let oid = Body::new(body).i32().map_or(0, |oid| oid as u32);
        if LARGE_OBJECTS.contains(&oid) {
            return;
        }
        self.settings.forget_exact();
        self.nobody_joins_any_more();
        match set_by(body) {
            Some(effect) => self.settings.note_effect(&effect),
            None => {
                self.settings.note_effect(&Effect::OpaqueSettings);
                self.pin(if oid == SET_CONFIG { Pin::OpaqueSettings } else { Pin::ServerState });
                if let Some(server) = self.held_server() {
                    server.dirty = true;
                }
            }
        }
    }
}

/// What a call of `set_config` sets, where its arguments can be read.
fn set_by(body: &[u8]) -> Option<Effect> {
    let mut body = Body::new(body);
    if body.i32()? as u32 != SET_CONFIG {
        return None;
    }
    let formats = usize::try_from(body.i16()?).ok()?;
    body.bytes(formats.checked_mul(2)?)?;
    let mut values = Vec::new();
    for _ in 0..usize::try_from(body.i16()?).ok()? {
        values.push(match usize::try_from(body.i32()?) {
            Ok(len) => Some(body.bytes(len)?),
            Err(_) => None,
        });
    }
    let [Some(name), _, is_local] = values.as_slice() else { return None };
    let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase().into();
    match is_local {
        None | Some([0] | b"f" | b"false") => Some(Effect::Set(name)),
        Some([1] | b"t" | b"true") => Some(Effect::SetLocal(name)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;

    fn call(oid: u32, arguments: &[Option<&[u8]>]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u32(oid);
        out.put_i16(1);
        out.put_i16(0);
        out.put_i16(i16::try_from(arguments.len()).expect("few"));
        for argument in arguments {
            out.put_i32(argument.map_or(-1, |bytes| i32::try_from(bytes.len()).expect("short")));
            out.put_slice(argument.unwrap_or_default());
        }
        out.put_i16(0);
        out
    }

    #[test]
    fn what_set_config_sets_is_read_off_its_arguments() {
        let of = |local| set_by(&call(SET_CONFIG, &[Some(b"Work_Mem"), Some(b"5MB"), local]));
        assert_eq!(of(Some(b"f")), Some(Effect::Set("work_mem".into())));
        assert_eq!(of(Some(&[1])), Some(Effect::SetLocal("work_mem".into())));
        assert_eq!(of(None), Some(Effect::Set("work_mem".into())));
    }

    #[test]
    fn what_cannot_be_read_is_not_guessed() {
        assert_eq!(set_by(&call(SET_CONFIG, &[None, None, None])), None);
        assert_eq!(set_by(&call(SET_CONFIG, &[Some(b"a"), Some(b"b"), Some(b"yes")])), None);
        assert_eq!(set_by(&call(1598, &[])), None);
        let whole = call(SET_CONFIG, &[Some(b"a"), Some(b"b"), Some(b"t")]);
        for end in 0..whole.len() - 2 {
            assert_eq!(set_by(&whole[..end]), None, "{end} bytes");
        }
    }
}
