//! Row-level security as the catalog holds it: constants of policies, and what all policies that a read meets make it depend on.

use std::collections::HashMap;

use super::model::{Oid, RowRules};

/// The text of a constant of type `text` as a node tree shows it: its bytes as decimal numbers, a length word of four bytes before.
/// `None` where it is not plain ASCII.
pub(super) fn text_constant(bytes: &str) -> Option<Box<str>> {
    let bytes: Option<Vec<u8>> = bytes.split_ascii_whitespace().map(|byte| byte.parse().ok()).collect();
    let bytes = bytes?;
    let text = std::str::from_utf8(bytes.get(4..)?).ok()?;
    (text.is_ascii() && !text.is_empty()).then(|| text.to_ascii_lowercase().into())
}

/// What the policies of those secured relations make a read depend on.
pub(super) fn together<'a>(
    secured: impl Iterator<Item = &'a Oid>,
    policies: &HashMap<Oid, Vec<(Vec<Oid>, RowRules)>>,
) -> RowRules {
    let mut all = RowRules::default();
    for (_, rules) in secured.filter_map(|oid| policies.get(oid)).flatten() {
        all.functions.extend(&rules.functions);
        all.settings.extend_from_slice(&rules.settings);
        all.opaque |= rules.opaque;
    }
    all.functions.sort_unstable();
    all.functions.dedup();
    all.settings.sort_unstable();
    all.settings.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_is_read_from_its_bytes() {
        let app = "56 0 0 0 97 112 112 46 84 101 110 97 110 116";
        assert_eq!(text_constant(app).as_deref(), Some("app.tenant"));
        for damaged in ["", "56 0 0", "56 0 0 0", "56 0 0 0 -61 -92", "56 0 0 0 x"] {
            assert_eq!(text_constant(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn all_policies_count() {
        let rules = |function, setting: &str, opaque| RowRules {
            functions: vec![function],
            settings: vec![setting.into()],
            opaque,
        };
        let policies = HashMap::from([
            (1, vec![(vec![], rules(7, "a.b", false)), (vec![], rules(5, "a.b", false))]),
            (2, vec![(vec![], rules(6, "a.c", true))]),
        ]);
        let one = together([1, 3].iter(), &policies);
        assert_eq!(one, RowRules { functions: vec![5, 7], settings: vec!["a.b".into()], opaque: false });
        assert!(together([1, 2].iter(), &policies).opaque);
    }
}
