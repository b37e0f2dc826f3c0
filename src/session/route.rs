//! `EXPLAIN (ROUTE)`, which pgherd answers in every database: how it is noticed where no plans matter, and described.

use std::sync::LazyLock;

use bytes::BytesMut;

use super::Session;
use super::unit::statement_of;
use crate::sql::facts::{Class, Facts};
use crate::wire::frame::Frame;
use crate::wire::frontend;
use crate::wire::writer;

/// Its columns.
pub(super) const ROUTE_COLUMNS: [&str; 2] = ["property", "value"];
/// ParameterDescription without a parameter, and NoData.
pub(super) const NO_ROWS: &[u8] = b"t\0\0\0\x06\0\0n\0\0\0\x04";
/// The same with the columns of `EXPLAIN (ROUTE)`.
pub(super) static ROUTE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut out = BytesMut::from(&b"t\0\0\0\x06\0\0"[..]);
    writer::text_row_description(&mut out, &ROUTE_COLUMNS);
    out.to_vec()
});
impl Session {
    /// Whether a message where no plans matter asks for one all the same: `EXPLAIN (ROUTE)` is pgherd's to answer everywhere.
    pub(super) fn may_ask_route(&self, frame: &Frame) -> bool {
        const WORD: &[u8] = b"explain";
        if !self.flight.is_empty() {
            return true;
        }
        match frame.tag() {
            b'P' => frontend::parse_names(frame.body()).is_some_and(|(_, text)| {
                let first = text.trim_ascii_start().get(..WORD.len());
                first.is_some_and(|first| first.eq_ignore_ascii_case(WORD))
                    && asks_route(&self.db.shared.analyzer.facts(text, self.conforming_strings()))
            }),
            b'B' | b'D' => statement_of(frame)
                .and_then(|name| self.statement(name))
                .is_some_and(|prepared| asks_route(&prepared.facts)),
            _ => false,
        }
    }
}

/// Whether one of the statements is that.
pub(super) fn asks_route(facts: &Facts) -> bool {
    facts.statements.iter().any(|statement| statement.class == Class::ExplainRoute)
}
