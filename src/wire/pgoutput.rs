//! What a logical replication stream says of changed relations: pgoutput's messages in protocol version 1 (PostgreSQL manual, 55.5 and
//! 55.9), read as far as it is needed to know which relations a transaction has changed. Rows are passed over.

use super::frame::Body;

/// A message of a stream of changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Streamed {
    /// A transaction begins.
    Begin,
    /// It has committed, and its changes are those since the Begin; `end` is where its commit ends in the WAL.
    Commit {
        /// A position in the WAL, in bytes.
        end: u64,
    },
    /// Rows of these relations were inserted, updated, deleted or truncated.
    Changed(Vec<u32>),
    /// The server has read the WAL up to there, and wants to hear from us if `asks` says so.
    KeepAlive {
        /// A position in the WAL, in bytes.
        end: u64,
        /// Whether it waits for a status update.
        asks: bool,
    },
    /// Something that changes no relation's rows: a relation's or a type's description, an origin, a logical message.
    Other,
}

/// Reads the body of a CopyData message; `None` if it is malformed.
pub fn read(copied: &[u8]) -> Option<Streamed> {
    let mut body = Body::new(copied);
    match body.u8()? {
        b'k' => {
            let end = position(&mut body)?;
            body.bytes(8)?;
            Some(Streamed::KeepAlive { end, asks: body.u8()? != 0 })
        }
        b'w' => {
            body.bytes(24)?;
            read_change(&mut body)
        }
        _ => None,
    }
}

fn read_change(body: &mut Body<'_>) -> Option<Streamed> {
    match body.u8()? {
        b'B' => Some(Streamed::Begin),
        b'C' => {
            body.bytes(9)?;
            Some(Streamed::Commit { end: position(body)? })
        }
        b'I' | b'U' | b'D' => Some(Streamed::Changed(vec![oid(body)?])),
        b'T' => {
            let count = usize::try_from(body.i32()?).ok()?;
            body.u8()?;
            let oids = body.rest().chunks_exact(4).map_while(|oid| Some(u32::from_be_bytes(oid.try_into().ok()?)));
            let oids: Vec<u32> = oids.take(count).collect();
            (oids.len() == count).then_some(Streamed::Changed(oids))
        }
        b'R' | b'Y' | b'O' | b'M' => Some(Streamed::Other),
        _ => None,
    }
}

fn position(body: &mut Body<'_>) -> Option<u64> {
    Some(u64::from_be_bytes(body.bytes(8)?.try_into().ok()?))
}

fn oid(body: &mut Body<'_>) -> Option<u32> {
    Some(u32::from_be_bytes(body.bytes(4)?.try_into().ok()?))
}

/// The body of a standby status update: everything up to `end` has been taken in, and the server is asked for a keepalive.
pub fn status_update(end: u64, micros_since_2000: i64) -> [u8; 34] {
    let mut body = [0; 34];
    body[0] = b'r';
    for at in [1, 9, 17] {
        body[at..at + 8].copy_from_slice(&end.to_be_bytes());
    }
    body[25..33].copy_from_slice(&micros_since_2000.to_be_bytes());
    body[33] = 1;
    body
}

/// A position as PostgreSQL writes it, `16/B374D848`.
pub fn parse_position(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from(u32::from_str_radix(high, 16).ok()?) << 32 | u64::from(u32::from_str_radix(low, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(change: &[u8]) -> Vec<u8> {
        [b"w".as_slice(), &[0; 24], change].concat()
    }

    #[test]
    fn changes_name_their_relations_and_rows_are_passed_over() {
        for tag in *b"IUD" {
            let change = [&[tag][..], &16384_u32.to_be_bytes(), b"N\0\x01t\0\0\0\x01x"].concat();
            assert_eq!(read(&data(&change)), Some(Streamed::Changed(vec![16384])));
        }
        let truncate = [b"T\0\0\0\x02\x01".as_slice(), &7_u32.to_be_bytes(), &9_u32.to_be_bytes()].concat();
        assert_eq!(read(&data(&truncate)), Some(Streamed::Changed(vec![7, 9])));
        assert_eq!(read(&data(b"R\0\0\x40\0public\0t\0d\0\0")), Some(Streamed::Other));
    }

    #[test]
    fn a_commit_and_a_keepalive_say_where_they_end() {
        let commit = [b"C\0".as_slice(), &5_u64.to_be_bytes(), &6_u64.to_be_bytes(), &[0; 8]].concat();
        assert_eq!(read(&data(&commit)), Some(Streamed::Commit { end: 6 }));
        let keepalive = [b"k".as_slice(), &8_u64.to_be_bytes(), &[0; 8], &[1]].concat();
        assert_eq!(read(&keepalive), Some(Streamed::KeepAlive { end: 8, asks: true }));
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        let truncate = data(&[b"T\0\0\0\x02\x01".as_slice(), &7_u32.to_be_bytes(), &9_u32.to_be_bytes()].concat());
        for end in 0..truncate.len() {
            assert_eq!(read(&truncate[..end]), None, "{end} bytes");
        }
        assert_eq!(read(&data(b"T\xff\xff\xff\xff\0")), None);
        assert_eq!(read(b"?"), None);
    }

    #[test]
    fn positions_are_read_as_postgresql_writes_them() {
        assert_eq!(parse_position("16/B374D848"), Some(0x16_B374_D848));
        assert_eq!(parse_position("16"), None);
        assert_eq!(parse_position("x/1"), None);
    }
}
