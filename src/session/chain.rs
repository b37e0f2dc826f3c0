//! COMMIT AND CHAIN, ROLLBACK AND CHAIN: the next transaction begins as the one before did, on no server yet.

use bytes::Bytes;

use super::Session;
use super::planned::{Execution, Way};
use crate::error::Error;
use crate::sql::facts::{Class, Effect, Facts, TransactionControl};
use crate::wire::writer::TransactionStatus;

impl Session {
    /// How a transaction over several servers is ended and followed by its like.
    ///
    /// # Errors
    /// What it is like was changed in a way that is not repeated.
    pub(super) fn way_of_chain(&self, commit: bool) -> Result<Way, Error> {
        match self.begins_again() {
            Some(begin) => Ok(Way::ChainEverywhere(commit, begin)),
            None => Err(Error::refused(
                "AND CHAIN in a transaction over several servers that has set what transactions are like by SET or set_config()",
            )
            .hint("Use COMMIT or ROLLBACK, and BEGIN with what the next one is to be like.")),
        }
    }

    /// A transaction on one server is followed by its like there; others may join that as they might have joined this one.
    pub(super) fn chain_on_one(&mut self) {
        let begin = self.begins_again();
        let has_set = self.settings.must_read_back();
        let entries = begin.filter(|_| !has_set);
        let kept = match (entries, &mut self.span) {
            (Some(begin), Some(span)) => span.begin_again(begin),
            _ => false,
        };
        if !kept {
            // What the server has been told in between is not known to others.
            self.span = None;
        }
    }

    /// BEGIN and each SET TRANSACTION behind it; `None` where settings may say otherwise.
    fn begins_again(&self) -> Option<Vec<Bytes>> {
        let begin = self.repeated_of(self.span.as_ref()?.texts())?;
        // What made it fail may have been the last of them.
        let is_certain = self.status != TransactionStatus::Failed || begin.len() == 1;
        (is_certain && !begin.is_empty()).then_some(begin)
    }

    fn repeated_of<'t>(&self, texts: impl Iterator<Item = &'t Bytes>) -> Option<Vec<Bytes>> {
        let mut begin: Vec<Bytes> = Vec::new();
        for text in texts {
            let facts = self.db.shared.analyzer.facts(text, self.conforming_strings());
            if repeated(&facts)? {
                begin.push(text.clone());
            }
        }
        Some(begin)
    }

    /// Ends a transaction that no server knew of, and begins its like.
    pub(super) fn end_and_chain(&mut self, execution: &Execution<'_>, described: bool, commit: bool) {
        let begin = std::mem::take(&mut self.lazy_begin);
        let begin = self.repeated_of(begin.iter()).unwrap_or(begin);
        let like = (self.isolated, self.read_only);
        self.transaction_is_over();
        (self.isolated, self.read_only) = like;
        self.begin_as_before(begin);
        self.answer_tag(execution, described, if commit { "COMMIT" } else { "ROLLBACK" });
    }

    /// Ends a transaction on all of its servers, and begins its like. `Err` inside is the ErrorResponse of one that would not.
    pub(super) async fn chain_everywhere(
        &mut self,
        execution: &Execution<'_>,
        described: bool,
        (commit, begin): (bool, Vec<Bytes>),
    ) -> Result<Result<(), Bytes>, Error> {
        let read_only = self.read_only;
        let committed = match Box::pin(self.end_everywhere(commit)).await? {
            Ok(committed) => committed,
            Err(message) => return Ok(Err(message)),
        };
        self.read_only = read_only;
        self.begin_as_before(begin);
        self.answer_tag(execution, described, if committed { "COMMIT" } else { "ROLLBACK" });
        Ok(Ok(()))
    }

    fn begin_as_before(&mut self, begin: Vec<Bytes>) {
        self.lazy_begin = begin;
        self.has_read_aside = false;
        self.status = TransactionStatus::InTransaction;
    }
}

/// Whether the next transaction must be told the same; `None` if what it is like cannot be told from it.
fn repeated(facts: &Facts) -> Option<bool> {
    use TransactionControl::{Begin, BeginOther, BeginReadOnly};
    let statement = facts.single()?;
    let is_of_transactions = |effect: &Effect| match effect {
        Effect::Set(name) | Effect::SetLocal(name) | Effect::Reset(name) | Effect::ResetLocal(name) => {
            name.starts_with("transaction_") || name.starts_with("default_transaction_")
        }
        Effect::ResetAll | Effect::OpaqueSettings => true,
        _ => false,
    };
    if statement.effects.iter().any(is_of_transactions) {
        return None;
    }
    let Class::Transaction(control) = statement.class else { return Some(false) };
    Some(matches!(control, Begin | BeginReadOnly | BeginOther) || control.sets_transaction())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Analyzer;

    #[test]
    fn what_says_how_transactions_are_is_repeated() {
        let analyzer = Analyzer::with_memo_bytes(1 << 20);
        let of = |text: &str| repeated(&analyzer.facts(text.as_bytes(), true));
        for (text, expected) in [
            ("begin", Some(true)),
            ("start transaction read only", Some(true)),
            ("set transaction read only", Some(true)),
            ("savepoint a", Some(false)),
            ("set local work_mem = '1MB'", Some(false)),
            ("select 1", Some(false)),
            ("set transaction_read_only = on", None),
            ("set session characteristics as transaction read only", None),
            ("reset all", None),
        ] {
            assert_eq!(of(text), expected, "{text}");
        }
    }
}
