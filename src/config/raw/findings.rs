//! Placing a fault or a warning at its key: line, value as it was typed, and for an unknown key the nearest known one.

use toml::Spanned;
use toml::de::DeValue;

use super::Table;
use crate::config::fault::Fault;
use crate::config::keys::{self, Kind};

/// Characters of a value that a fault shows.
const SEEN_CHARACTERS: usize = 60;

impl Table<'_> {
    pub(super) fn finding(&self, key: &str, problem: String, help: String) -> Fault {
        let (line, seen) = match self.entry(key) {
            Some((line, value)) => (Some(line), self.seen(key, value)),
            None => (self.line, None),
        };
        Fault { path: self.child_path(key), line, seen, problem, help }
    }

    /// The value as it was typed; stars for a secret, nothing for a table.
    fn seen(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Option<String> {
        match self.schema.key(key)?.kind {
            Kind::Secret | Kind::Secrets => return Some("***".into()),
            // A string here may be a URL with its password: `redis = "redis://..."`.
            Kind::Table(_) | Kind::Tables(_) => return None,
            _ => {}
        }
        Some(shorten(self.document.text.get(value.span())?))
    }

    pub(super) fn refuse_unknown_keys(&self) {
        for (name, value) in self.entries.into_iter().flatten() {
            let name_text: &str = name.get_ref();
            if self.schema.key(name_text).is_some() {
                continue;
            }
            let unsupported = self.schema.unsupported.iter().find(|(key, _)| *key == name_text);
            let (problem, help) = match unsupported {
                Some((_, instead)) => ("not supported in this version", (*instead).to_string()),
                None => ("this key is not known", self.suggest(name_text)),
            };
            // An unknown key may be a mistyped secret: its value is shown only where that cannot be.
            let seen = match value.get_ref() {
                DeValue::Integer(_) | DeValue::Boolean(_) => self.document.text.get(value.span()).map(shorten),
                _ => None,
            };
            self.document.faults.borrow_mut().push(Fault {
                path: self.child_path(&shorten(name_text)),
                line: Some(self.document.line_of(name.span().start)),
                seen,
                problem: problem.into(),
                help,
            });
        }
    }

    /// The nearest key of this section, else the sections that have this very key, else what there is.
    fn suggest(&self, name: &str) -> String {
        if let Some(near) = nearest(name, self.schema.keys.iter().map(|key| key.name)) {
            return format!("did you mean \"{near}\"?");
        }
        let elsewhere: Vec<_> = keys::sections().into_iter().filter(|section| section.key(name).is_some()).collect();
        if let Some(section) = elsewhere.first() {
            let place =
                if section.path.is_empty() { "the top of the file".into() } else { format!("[{}]", section.path) };
            return format!("there is such a key in {place}");
        }
        let all = self.schema.keys.iter().map(|key| key.name).collect::<Vec<_>>().join(", ");
        format!("known here: {all}")
    }
}

/// The word that a mistyped one was most likely meant to be.
pub(crate) fn nearest<'w>(typed: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let typed = typed.to_ascii_lowercase().replace('-', "_");
    words
        .map(|word| (strsim::normalized_damerau_levenshtein(&typed, &word.replace('-', "_")), word))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

/// One line of at most `SEEN_CHARACTERS` characters.
fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.len() == text.len() && line.chars().count() <= SEEN_CHARACTERS {
        return line.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'");
    }
    let start: String = line.chars().take(SEEN_CHARACTERS).collect();
    format!("{}...", start.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"))
}
