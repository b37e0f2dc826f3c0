//! `${NAME}` and `${NAME:-default}` in string values; `$${` stands for a literal `${`.

/// Looks a variable up: the process's environment, or a map in tests.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces every reference in `text`.
///
/// # Errors
/// What is wrong with the first reference that cannot be replaced, for people.
pub fn substitute(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, reference) = rest.split_at(at);
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = &reference[2..];
            continue;
        }
        out.push_str(before);
        let Some(end) = reference.find('}') else {
            return Err("\"${\" has no closing \"}\"".into());
        };
        out.push_str(&value_of(&reference[2..end], lookup)?);
        rest = &reference[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of `NAME` or `NAME:-default`. An empty variable counts as unset where there is a default, as in a shell.
fn value_of(reference: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let is_name =
        name.chars().enumerate().all(|(i, c)| c == '_' || c.is_ascii_alphabetic() || (i > 0 && c.is_ascii_digit()));
    if name.is_empty() || !is_name {
        return Err(format!("\"{name}\" is not a name of an environment variable"));
    }
    match (lookup(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_string()),
        (None, None) => Err(format!("the environment variable {name} is not set")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("db.example".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn references_are_replaced_and_defaults_taken() {
        for (text, expected) in [
            ("plain", "plain"),
            ("host=${HOST} port=5432", "host=db.example port=5432"),
            ("${PORT:-5432}", "5432"),
            ("${EMPTY:-full}", "full"),
            ("${EMPTY}", ""),
            ("${NOPE:-}", ""),
            ("$${HOST}", "${HOST}"),
            ("a$b$", "a$b$"),
            ("${HOST}${HOST}", "db.exampledb.example"),
        ] {
            assert_eq!(substitute(text, &lookup).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        for (text, part) in
            [("${NOPE}", "NOPE is not set"), ("${HOST", "no closing"), ("${}", "not a name"), ("${1X}", "not a name")]
        {
            let error = substitute(text, &lookup).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
