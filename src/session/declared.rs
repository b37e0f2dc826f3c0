//! Types of parameters in statements over several servers. Those that users made have other oids on each: every server finds them out
//! from the text, and whatever says that it would find something else is refused.

use bytes::Bytes;

use super::Session;
use super::explain::parameters;
use super::insert_select::without_position;
use super::planned::{Execution, Way};
use crate::catalog::model::FIRST_USER_OID;
use crate::error::Error;
use crate::exec::merge::description::format_of;
use crate::plan::distribute::{Carrier, InsertSelect, marker};
use crate::sql::parameters::uses;

const TEXT_OID: u32 = 25;

impl Session {
    /// Types with which a statement over several servers runs, where a client has declared some that users made; they must be what
    /// a shard finds out by itself.
    pub(super) async fn types_over_servers(
        &mut self,
        execution: &Execution<'_>,
        way: &Way,
    ) -> Result<Option<Vec<u32>>, Error> {
        let is_over_several = matches!(
            way,
            Way::FanOut(_)
                | Way::Gather(_)
                | Way::Cursor(_)
                | Way::ExplainOver(_)
                | Way::Scatter(_)
                | Way::InsertSelect(_)
                | Way::KeyMove(_)
        );
        let declared = execution.types;
        if !is_over_several || declared.iter().all(|&oid| oid < FIRST_USER_OID) {
            return Ok(None);
        }
        let types = portable(declared);
        let is_as_found = match self.described(execution.text, &types).await? {
            Ok(described) => is_told(declared, &described.types, |_| false),
            Err(_) => false,
        };
        if is_as_found && self.is_known_alike(declared) {
            return Ok(Some(types));
        }
        self.forget_unparsed(execution);
        Err(Error::refused("a parameter declared as a type that users made, which the text alone does not give it, over several shards")
            .hint("Declare no type for it, and write its name in the statement: $1::mood."))
    }

    /// Whether none of these types is another one on the primary, where clients look types up.
    fn is_known_alike(&self, types: &[u32]) -> bool {
        let primary = self.db.catalog.current();
        let Some(shards) = self.db.shard_catalog.as_ref().map(|handle| handle.current()) else { return false };
        types.iter().filter(|&&oid| oid >= FIRST_USER_OID).all(|oid| {
            match (primary.types.get(oid), shards.types.get(oid)) {
                (Some(here), Some(there)) => (&here.schema, &here.name) == (&there.schema, &there.name),
                (here, _) => here.is_none(),
            }
        })
    }

    /// Sees to it that parameters mean in an INSERT's query alone what they mean in the whole.
    pub(super) fn check_types_of_query(
        &self,
        execution: &Execution<'_>,
        told: &[u32],
        plan: &InsertSelect,
        alone: &[u32],
    ) -> Result<(), Error> {
        let uses = uses(plan.query.as_bytes(), told.len(), self.conforming_strings());
        let shards = self.db.shard_catalog.as_ref().map(|handle| handle.current());
        let formats = parameters(execution).0;
        // As a text it may be carried if its binary form is one, too.
        let is_carried = |at: usize| {
            let is_enum = || shards.as_ref()?.types.get(told.get(at)?).map(|known| known.kind == 'e');
            plan.casts_parameter(at + 1)
                && uses.get(at) == Some(&1)
                && alone.get(at) == Some(&TEXT_OID)
                && (format_of(formats, at) == 0 || is_enum() == Some(true))
        };
        let is_settled = |at: usize| uses.get(at) == Some(&0) || is_carried(at);
        is_told(told, alone, is_settled).then_some(()).ok_or_else(unsettled)
    }

    /// The same of what the shards run, where its ON CONFLICT or RETURNING has such parameters.
    pub(super) async fn check_types_of_parts(
        &mut self,
        execution: &Execution<'_>,
        told: &[u32],
        plan: &InsertSelect,
        carriers: &[Carrier],
        first: usize,
    ) -> Result<Result<(), Bytes>, Error> {
        let unmarked = |sql: String, at: usize| sql.replace(&marker(at), "NULL");
        let sql = (0..plan.moments.len()).fold(plan.sql(carriers, first), unmarked);
        let uses = uses(sql.as_bytes(), told.len(), self.conforming_strings());
        if !uses.iter().zip(told).any(|(&uses, &oid)| uses > 0 && oid >= FIRST_USER_OID) {
            return Ok(Ok(()));
        }
        let types = types_in(&sql, execution.types, self.conforming_strings());
        match self.described(sql.as_bytes(), &types).await? {
            Ok(alone) => match is_told(told, &alone.types, |at| uses.get(at) == Some(&0)) {
                true => Ok(Ok(())),
                false => Err(unsettled()),
            },
            Err(message) => Ok(Err(without_position(message))),
        }
    }
}

/// The types that are the same on all servers; 0 for those that users made.
pub(super) fn portable(types: &[u32]) -> Vec<u32> {
    types.iter().map(|&oid| if oid < FIRST_USER_OID { oid } else { 0 }).collect()
}

/// Types for a part of a statement: what it does not use needs one, since nobody could find it out.
pub(super) fn types_in(part: &str, types: &[u32], standard_conforming_strings: bool) -> Vec<u32> {
    let uses = uses(part.as_bytes(), types.len(), standard_conforming_strings);
    types.iter().zip(uses).map(|(&oid, uses)| if oid == 0 && uses == 0 { TEXT_OID } else { oid }).collect()
}

/// The values that a part of a statement uses.
pub(super) fn values_in<'v>(
    part: &str,
    values: &[Option<&'v [u8]>],
    standard_conforming_strings: bool,
) -> Vec<Option<&'v [u8]>> {
    let uses = uses(part.as_bytes(), values.len(), standard_conforming_strings);
    values.iter().zip(uses).map(|(value, uses)| value.filter(|_| uses > 0)).collect()
}

/// Whether types that users made are told alike, but for those that do not matter.
fn is_told(types: &[u32], told: &[u32], does_not_matter: impl Fn(usize) -> bool) -> bool {
    types.iter().enumerate().all(|(at, oid)| *oid < FIRST_USER_OID || told.get(at) == Some(oid) || does_not_matter(at))
}

fn unsettled() -> Error {
    Error::refused("INSERT of a query's rows with a parameter of a type that users made, which a part of the statement does not show")
        .hint("Write the type's name: $1::mood.")
}
