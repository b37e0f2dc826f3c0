//! PgBouncer's two files: sections of `key = value`, and names with secrets in double quotes.

/// A file's settings by section, in their order; what is asked for is taken out, what remains was not understood.
#[derive(Debug, Default)]
pub(super) struct File {
    settings: Vec<(String, String, String)>,
    /// Lines that are neither a section nor a setting.
    pub(super) strange: Vec<String>,
}

impl File {
    pub(super) fn read(text: &str) -> Self {
        let mut file = Self::default();
        let mut section = String::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = name.trim().to_owned();
            } else if let Some((key, value)) = line.split_once('=') {
                let key = key.trim().trim_matches('"').to_owned();
                file.settings.push((section.clone(), key, value.trim().to_owned()));
            } else {
                file.strange.push(line.to_owned());
            }
        }
        file
    }

    /// A setting; the last one counts.
    pub(super) fn take(&mut self, section: &str, key: &str) -> Option<String> {
        let mut found = None;
        self.settings.retain(|(of, name, value)| {
            let is_it = of == section && name == key;
            if is_it {
                found = Some(value.clone());
            }
            !is_it
        });
        found
    }

    /// All settings of a section.
    pub(super) fn take_section(&mut self, section: &str) -> Vec<(String, String)> {
        let (taken, rest) =
            std::mem::take(&mut self.settings).into_iter().partition(|(of, _, _): &(String, _, _)| of == section);
        self.settings = rest;
        taken.into_iter().map(|(_, key, value)| (key, value)).collect()
    }

    /// What nobody has asked for.
    pub(super) fn rest(self) -> Vec<(String, String, String)> {
        self.settings
    }
}

/// `key=value key='it''s'`, as in a connection string.
pub(super) fn pairs(text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=') {
            key.push(c);
        }
        if chars.next().is_none() {
            return pairs;
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        if chars.next_if_eq(&'\'').is_some() {
            while let Some(c) = chars.next() {
                if c == '\'' && chars.next_if_eq(&'\'').is_none() {
                    break;
                }
                value.push(c);
            }
        } else {
            while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
                value.push(c);
            }
        }
        pairs.push((key.trim().to_owned(), value));
    }
}

/// `"name" "secret"` on each line, a double quote doubled.
pub(super) fn userlist(text: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let mut texts = Vec::new();
        let mut chars = line.trim().chars().peekable();
        while texts.len() < 2 {
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            chars.next_if_eq(&'"')?;
            let mut text = String::new();
            loop {
                match chars.next()? {
                    '"' if chars.next_if_eq(&'"').is_none() => break,
                    c => text.push(c),
                }
            }
            texts.push(text);
        }
        let secret = texts.pop()?;
        Some((texts.pop()?, secret))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_connection_strings_and_users_are_read() {
        let mut file =
            File::read("; c\n[databases]\napp = host=a dbname='it''s'\n[pgbouncer]\nx=1\nx = 2\n%include y\n");
        assert_eq!(file.take("pgbouncer", "x").as_deref(), Some("2"));
        let databases = file.take_section("databases");
        assert_eq!(pairs(&databases[0].1), [("host".into(), "a".into()), ("dbname".into(), "it's".into())]);
        assert_eq!(file.strange, ["%include y"]);
        assert!(file.rest().is_empty());
        assert_eq!(userlist("; no\n\"a\" \"b\"\"c\"\n\"alone\"\n"), [("a".to_owned(), "b\"c".to_owned())]);
    }
}
