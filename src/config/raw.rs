//! What was typed: the TOML as a tree with spans, read key by key against the list in `keys`.
//!
//! serde would stop at the first fault; this keeps going, so that one run names all of them.

use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::env::{self, Lookup};
use super::fault::Fault;
use super::keys::{self, Key, Kind, Section};
use super::units;

mod findings;

pub(crate) use findings::nearest;

/// One file's text, its surroundings, and the faults found so far.
pub(crate) struct Document<'a> {
    text: &'a str,
    base: &'a Path,
    env: Lookup<'a>,
    line_starts: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
    warnings: RefCell<Vec<Fault>>,
}

impl<'a> Document<'a> {
    /// `base` is the folder that paths are relative to.
    pub(crate) fn new(text: &'a str, base: &'a Path, env: Lookup<'a>) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, base, env, line_starts, faults: RefCell::default(), warnings: RefCell::default() }
    }

    /// Parses the text. What is not TOML is noted as faults; the rest is kept, so that its faults show too.
    pub(crate) fn parse(&self) -> DeTable<'a> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            // Only the message: Display would quote the line, and the line may hold a password.
            let line = error.span().map(|span| self.line_of(span.start));
            if let Some(fault) = line.and_then(|line| findings::second(self.text, line, error.message())) {
                self.faults.borrow_mut().push(fault);
                continue;
            }
            self.faults.borrow_mut().push(Fault {
                path: String::new(),
                line,
                seen: None,
                problem: format!("this is not TOML: {}", error.message()),
                help:
                    "see https://toml.io; strings need quotes, a table begins with [name], a repeated one with [[name]]"
                        .into(),
            });
        }
        table.into_inner()
    }

    /// The top of the tree.
    pub(crate) fn root<'d>(&'d self, table: &'d DeTable<'a>) -> Table<'d> {
        Table::open(self, &keys::ROOT, String::new(), None, Some(table))
    }

    /// All faults and all warnings.
    pub(crate) fn into_findings(self) -> (Vec<Fault>, Vec<Fault>) {
        (self.faults.into_inner(), self.warnings.into_inner())
    }

    /// The line of a byte offset, from 1.
    fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }
}

/// A table of the file, or the absence of one: then every key has its default.
pub(crate) struct Table<'d> {
    document: &'d Document<'d>,
    schema: &'static Section,
    path: String,
    line: Option<usize>,
    entries: Option<&'d DeTable<'d>>,
}

/// A scalar after substitution.
enum Scalar {
    Text(String),
    Number(i128),
    Flag(bool),
}

impl<'d> Table<'d> {
    fn open(
        document: &'d Document<'d>,
        schema: &'static Section,
        path: String,
        line: Option<usize>,
        entries: Option<&'d DeTable<'d>>,
    ) -> Self {
        let table = Self { document, schema, path, line, entries };
        table.refuse_unknown_keys();
        table
    }

    /// The table's own path, as `database[1]`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the file has this table at all.
    pub(crate) fn is_present(&self) -> bool {
        self.entries.is_some()
    }

    /// Whether the key was typed.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Notes a fault of a key: what is wrong, what to do.
    pub(crate) fn fault(&self, key: &str, problem: impl Into<String>, help: impl Into<String>) {
        let fault = self.finding(key, problem.into(), help.into());
        self.document.faults.borrow_mut().push(fault);
    }

    /// Notes something that is allowed but unwise.
    pub(crate) fn warn(&self, key: &str, problem: impl Into<String>, help: impl Into<String>) {
        let warning = self.finding(key, problem.into(), help.into());
        self.document.warnings.borrow_mut().push(warning);
    }

    /// A string.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        match self.scalar(key)? {
            Scalar::Text(text) => Some(text),
            _ => self.wrong_type(key, "a string in quotes"),
        }
    }

    /// A string, or the key's default where nothing is typed.
    pub(crate) fn text_or_default(&self, key: &str) -> Option<String> {
        if self.has(key) { self.text(key) } else { self.default(key, |text| Some(text.to_string())) }
    }

    /// A string that must be there.
    pub(crate) fn required_text(&self, key: &str, help: &str) -> Option<String> {
        if !self.has(key) {
            self.fault(key, "this key is missing", help);
            return None;
        }
        let text = self.text(key)?;
        if text.trim().is_empty() {
            self.fault(key, "this must not be empty", help);
            return None;
        }
        Some(text)
    }

    /// A path, made absolute against the TOML's folder.
    pub(crate) fn path_of(&self, key: &str) -> Option<PathBuf> {
        let text = self.text(key)?;
        if text.is_empty() {
            self.fault(key, "the path is empty", "give a path, relative to the folder of this file, or remove the key");
            return None;
        }
        Some(self.document.base.join(text))
    }

    /// A duration with a default.
    pub(crate) fn duration(&self, key: &str) -> Duration {
        let typed = self.text(key).and_then(|text| match units::duration(&text) {
            Ok(Duration::ZERO) => {
                self.fault(key, "it must be longer than nothing", "write a number and a unit, as \"30s\"");
                None
            }
            Ok(duration) => Some(duration),
            Err(problem) => {
                self.fault(key, problem, "write a number and a unit, as \"250ms\", \"30s\", \"5m\" or \"1h\"");
                None
            }
        });
        typed.unwrap_or_else(|| self.default(key, |text| units::duration(text).ok()).unwrap_or_default())
    }

    /// A duration, or `"off"`.
    pub(crate) fn duration_or_off(&self, key: &str) -> Option<Duration> {
        let read = |text: &str| match text {
            "off" => Ok(None),
            text => units::duration(text).map(|duration| (!duration.is_zero()).then_some(duration)),
        };
        let typed = self.scalar(key).and_then(|scalar| match scalar {
            Scalar::Number(0) => Some(Ok(None)),
            Scalar::Text(text) => Some(read(&text)),
            _ => self.wrong_type(key, "a duration in quotes, as \"30s\", or \"off\""),
        });
        match typed {
            Some(Ok(duration)) => return duration,
            Some(Err(problem)) => self.fault(key, problem, "write a number and a unit, as \"30s\", or \"off\""),
            None => {}
        }
        self.default(key, |text| read(text).ok()).flatten()
    }

    /// A size in bytes with a default.
    pub(crate) fn size(&self, key: &str) -> u64 {
        let typed = self.scalar(key).and_then(|scalar| {
            let read = match scalar {
                Scalar::Number(number) => u64::try_from(number).map_err(|_| "it must not be negative".to_string()),
                Scalar::Text(text) => units::size(&text),
                Scalar::Flag(_) => return self.wrong_type(key, "a size, as \"64MiB\", or a number of bytes"),
            };
            read.map_err(|problem| self.fault(key, problem, "write a size as \"64MiB\", \"64MB\" or a number of bytes"))
                .ok()
        });
        typed.unwrap_or_else(|| self.default(key, |text| units::size(text).ok()).unwrap_or_default())
    }

    /// A whole number within bounds; the default, if there is one, where nothing is typed.
    pub(crate) fn count(&self, key: &str, bounds: Range<u64>) -> Option<u64> {
        let typed = self.scalar(key).and_then(|scalar| {
            let number = match scalar {
                Scalar::Number(number) => Some(number),
                // A string is a number only through `${...}`, for which TOML has no unquoted form.
                Scalar::Text(text) => text.trim().parse().ok(),
                Scalar::Flag(_) => None,
            };
            let Some(number) = number else {
                return self.wrong_type(key, "a whole number");
            };
            let within = u64::try_from(number).ok().filter(|number| bounds.contains(number));
            if within.is_none() {
                let highest = bounds.end.saturating_sub(1);
                self.fault(key, "the number is out of bounds", format!("from {} to {highest}", bounds.start));
            }
            within
        });
        typed.or_else(|| self.default(key, |text| text.parse().ok()))
    }

    /// A flag.
    pub(crate) fn flag(&self, key: &str) -> bool {
        let typed = self.scalar(key).and_then(|scalar| match scalar {
            Scalar::Flag(flag) => Some(flag),
            Scalar::Text(text) if text == "true" => Some(true),
            Scalar::Text(text) if text == "false" => Some(false),
            _ => self.wrong_type(key, "true or false"),
        });
        typed.unwrap_or_else(|| self.default(key, |text| text.parse().ok()).unwrap_or_default())
    }

    /// One of the words that the key takes, as an index into them; the default where there is one.
    pub(crate) fn choice(&self, key: &str) -> Option<usize> {
        let Some(Key { kind: Kind::Choice(words), .. }) = self.schema.key(key) else {
            return None;
        };
        let typed = self.text(key).and_then(|text| {
            let found = words.iter().position(|word| *word == text);
            if found.is_none() {
                let all = words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
                let help = match nearest(&text, words.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"? It takes {all}"),
                    None => format!("it takes {all}"),
                };
                self.fault(key, "this word is not known here", help);
            }
            found
        });
        typed.or_else(|| self.default(key, |text| words.iter().position(|word| *word == text)))
    }

    /// An array of strings; numbers are taken as they are written. Each with its place, as `shards[1]`.
    pub(crate) fn texts(&self, key: &str) -> Vec<String> {
        let Some(value) = self.entry(key).map(|(_, value)| value) else {
            return Vec::new();
        };
        let kind = self.schema.key(key).map(|key| key.kind);
        let numbers = matches!(kind, Some(Kind::Values | Kind::ValueOrValues));
        let DeValue::Array(items) = value.get_ref() else {
            if let (Some(Kind::TextOrTexts | Kind::ValueOrValues), DeValue::String(_) | DeValue::Integer(_)) =
                (kind, value.get_ref())
            {
                return match self.scalar(key) {
                    Some(Scalar::Text(text)) => vec![text],
                    Some(Scalar::Number(number)) if numbers => vec![number.to_string()],
                    Some(_) => {
                        self.wrong_type::<Vec<String>>(key, "a string, or an array of strings").unwrap_or_default()
                    }
                    None => Vec::new(),
                };
            }
            let _: Option<()> = self.wrong_type(key, "an array, as [\"a\", \"b\"]");
            return Vec::new();
        };
        let mut out = Vec::new();
        for item in items.iter() {
            match self.scalar_of(key, item.get_ref()) {
                Some(Scalar::Text(text)) => out.push(text),
                Some(Scalar::Number(number)) if numbers => out.push(number.to_string()),
                Some(_) => {
                    let _: Option<()> = self.wrong_type(key, "an array of strings");
                }
                None => {}
            }
        }
        out
    }

    /// Whether the key's value is an array.
    pub(crate) fn is_array(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|(_, value)| matches!(value.get_ref(), DeValue::Array(_)))
    }

    /// How many elements an array has as it was typed, faulty ones included.
    pub(crate) fn texts_len(&self, key: &str) -> usize {
        match self.entry(key).map(|(_, value)| value.get_ref()) {
            Some(DeValue::Array(items)) => items.len(),
            _ => 0,
        }
    }

    /// A path that stands inside a value, made absolute against the TOML's folder.
    pub(crate) fn resolve(&self, path: &Path) -> PathBuf {
        self.document.base.join(path)
    }

    /// A table within this one; an absent one has every default.
    pub(crate) fn table(&self, key: &str) -> Self {
        let path = self.child_path(key);
        let schema = self.child_schema(key);
        match self.entry(key) {
            Some((line, value)) => match value.get_ref() {
                DeValue::Table(entries) => Table::open(self.document, schema, path, Some(line), Some(entries)),
                _ => {
                    let _: Option<()> = self.wrong_type(key, &format!("a table: [{path}] or {key} = {{ ... }}"));
                    Table::open(self.document, schema, path, Some(line), None)
                }
            },
            None => Table::open(self.document, schema, path, self.line, None),
        }
    }

    /// The tables of an array of tables.
    pub(crate) fn tables(&self, key: &str) -> Vec<Self> {
        let Some((_, value)) = self.entry(key) else {
            return Vec::new();
        };
        let (schema, path) = (self.child_schema(key), self.child_path(key));
        let DeValue::Array(items) = value.get_ref() else {
            let _: Option<()> = self.wrong_type(key, &format!("an array of tables: write [[{}]]", schema.path));
            return Vec::new();
        };
        let mut out = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let line = self.document.line_of(item.span().start);
            match item.get_ref() {
                DeValue::Table(entries) => {
                    let path = format!("{path}[{index}]");
                    out.push(Table::open(self.document, schema, path, Some(line), Some(entries)));
                }
                _ => {
                    let _: Option<()> = self.wrong_type(key, "an array of tables, as [{ ... }, { ... }]");
                }
            }
        }
        out
    }

    /// Names that the user chose, each with its value's text, for `cache.tables`. `false` reads as `off`.
    pub(crate) fn by_name(&self, key: &str) -> Vec<(String, String)> {
        let Some((_, value)) = self.entry(key) else {
            return Vec::new();
        };
        let DeValue::Table(entries) = value.get_ref() else {
            let _: Option<()> = self.wrong_type(key, "a table, as { \"public.orders\" = \"30s\" }");
            return Vec::new();
        };
        let mut out = Vec::new();
        for (name, value) in entries {
            match self.scalar_of(key, value.get_ref()) {
                Some(Scalar::Text(text)) => out.push((name.get_ref().to_string(), text)),
                Some(Scalar::Flag(false)) => out.push((name.get_ref().to_string(), "off".into())),
                Some(_) => {
                    let _: Option<()> = self.wrong_type(key, "a duration in quotes for each name, or \"off\"");
                }
                None => {}
            }
        }
        out
    }

    /// The line and value of a key. In debug builds a key that `keys` does not list is a programming error.
    fn entry(&self, key: &str) -> Option<(usize, &'d Spanned<DeValue<'d>>)> {
        debug_assert!(self.schema.key(key).is_some(), "{}.{key} is not in config::keys", self.schema.path);
        let (name, value) = self.entries?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((self.document.line_of(name.span().start), value))
    }

    fn scalar(&self, key: &str) -> Option<Scalar> {
        let (_, value) = self.entry(key)?;
        self.scalar_of(key, value.get_ref())
    }

    fn scalar_of(&self, key: &str, value: &DeValue<'_>) -> Option<Scalar> {
        match value {
            DeValue::String(text) => match env::substitute(text, self.document.env) {
                Ok(text) => Some(Scalar::Text(text)),
                Err(problem) => {
                    self.fault(key, problem, "set it, or write ${NAME:-default}; a literal ${ is written $${");
                    None
                }
            },
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Some(Scalar::Number(number)),
                Err(_) => self.wrong_type(key, "a smaller number"),
            },
            DeValue::Boolean(flag) => Some(Scalar::Flag(*flag)),
            DeValue::Float(_) => self.wrong_type(key, "a string or a whole number"),
            DeValue::Datetime(_) => self.wrong_type(key, "a string: put the date in quotes"),
            DeValue::Array(_) | DeValue::Table(_) => self.wrong_type(key, "a single value"),
        }
    }

    fn default<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.schema.key(key)?.default.and_then(read)
    }

    fn wrong_type<T>(&self, key: &str, wanted: &str) -> Option<T> {
        let found = self.entry(key).map_or("nothing", |(_, value)| value.get_ref().type_str());
        self.fault(key, format!("a value of type {found} cannot stand here"), format!("write {wanted}"));
        None
    }

    fn child_path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_string() } else { format!("{}.{key}", self.path) }
    }

    fn child_schema(&self, key: &str) -> &'static Section {
        match self.schema.key(key).map(|key| key.kind) {
            Some(Kind::Table(section) | Kind::Tables(section)) => section,
            _ => self.schema,
        }
    }
}
