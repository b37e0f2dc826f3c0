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

/// A table or key that stands there a second time, told with where it stands first; `None` for other errors, and where that is not found.
pub(super) fn second(text: &str, line: usize, message: &str) -> Option<Fault> {
    if !message.starts_with("duplicate key") {
        return None;
    }
    let lines: Vec<&str> = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect();
    let (before, this) = (lines.get(..line.checked_sub(1)?)?, *lines.get(line - 1)?);
    let is_header = this.starts_with('[');
    let name = if is_header { this } else { this.split('=').next()?.trim() };
    let is_it = |other: &&str| match is_header {
        true => **other == *this,
        false => other.split_once('=').is_some_and(|(key, _)| key.trim() == name),
    };
    // A key's table begins at the header before it.
    let from = if is_header { 0 } else { before.iter().rposition(|line| line.starts_with('[')).unwrap_or(0) };
    let first = from + before.get(from..)?.iter().position(is_it)? + 1;
    let help = match is_header {
        true => format!("put the keys of both under the {name} of line {first}"),
        false => "leave one of the two".into(),
    };
    let problem = format!("this is here a second time: line {first} has it already");
    Some(Fault { path: shorten(name), line: Some(line), seen: None, problem, help })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of line `line` of a text, in which the parser found a key twice.
    fn told(text: &str, line: usize) -> Option<String> {
        let table = toml::de::DeTable::parse_recoverable(text);
        let error = table.1.into_iter().find(|error| error.message().starts_with("duplicate"))?;
        second(text, line, error.message()).map(|fault| fault.to_string())
    }

    #[test]
    fn what_stands_there_twice_is_told_with_where_it_stands_first() {
        let text = "[listen] # one\naddress = \"a\"\n[pool]\nmode = \"session\"\n\n[listen]\nhttp = \"b\"\n";
        let said = told(text, 6).expect("a fault");
        assert!(said.starts_with("line 6: [listen]\n") && said.contains("line 1 has it already"), "{said}");
        assert!(said.contains("put the keys of both under the [listen] of line 1"), "{said}");
        let text = "[a]\nmode = 1\n[pool]\nmode = 2\nother = 3\nmode = 4\n";
        let said = told(text, 6).expect("a fault");
        assert!(said.starts_with("line 6: mode\n") && said.contains("line 4 has it already"), "{said}");
        assert!(said.contains("leave one of the two"), "{said}");
    }

    #[test]
    fn other_errors_are_told_as_they_are() {
        assert_eq!(second("a = \n", 1, "invalid string"), None);
        assert_eq!(second("a.b = 1\na = 2\n", 2, "duplicate key"), None, "the first is not found");
        assert_eq!(second("", 1, "duplicate key"), None);
    }
}
