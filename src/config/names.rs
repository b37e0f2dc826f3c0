//! Names of relations, columns and functions as PostgreSQL reads them: folded to lower case unless quoted.

/// PostgreSQL's NAMEDATALEN less the terminating zero: longer names would be cut there.
const NAME_BYTES: usize = 63;

/// Reads `name` or `schema.name`, each part plain or `"quoted"`.
///
/// # Errors
/// What is wrong with the text, for people.
pub fn qualified(text: &str) -> Result<(Option<String>, String), String> {
    let (first, rest) = part(text.trim())?;
    match rest.strip_prefix('.') {
        None if rest.is_empty() => Ok((None, first)),
        Some(rest) => match part(rest)? {
            (second, "") => Ok((Some(first), second)),
            _ => Err("the name has more than two parts, or something behind it".into()),
        },
        None => Err(format!("\"{rest}\" behind the name cannot be read")),
    }
}

/// Reads one name without a schema.
///
/// # Errors
/// What is wrong with the text, for people.
pub fn single(text: &str) -> Result<String, String> {
    match part(text.trim())? {
        (name, "") => Ok(name),
        _ => Err("one name without a schema is wanted here".into()),
    }
}

/// Reads `schema.function(type, ...)` and returns it as it was typed, without blanks around it.
///
/// # Errors
/// What is wrong with the text, for people.
pub fn function(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (name, arguments) = text.split_once('(').ok_or("the argument types are missing, as in public.slug(text)")?;
    let (schema, _) = qualified(name)?;
    if schema.is_none() {
        return Err("the schema is missing, as in public.slug(text)".into());
    }
    let arguments = arguments.strip_suffix(')').ok_or("the closing \")\" is missing")?;
    if !arguments.trim().is_empty() && arguments.split(',').any(|argument| argument.trim().is_empty()) {
        return Err("an argument type is empty".into());
    }
    Ok(text.to_string())
}

/// One part of a name and what follows it.
fn part(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(quoted) => quoted_part(quoted)?,
        None => plain_part(text)?,
    };
    if name.len() > NAME_BYTES {
        return Err(format!("the name is longer than PostgreSQL's {NAME_BYTES} bytes"));
    }
    Ok((name, rest))
}

fn plain_part(text: &str) -> Result<(String, &str), String> {
    let starts = |c: char| c == '_' || c.is_ascii_alphabetic() || !c.is_ascii();
    if !text.starts_with(starts) {
        return Err("a name begins with a letter or _, or stands in \"quotes\"".into());
    }
    let end = text.find(|c: char| !starts(c) && !c.is_ascii_digit() && c != '$').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    Ok((name.to_ascii_lowercase(), rest))
}

fn quoted_part(text: &str) -> Result<(String, &str), String> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"').ok_or("a quoted name has no closing quote")?;
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                name.push('"');
                rest = more;
            }
            None if name.is_empty() || name.contains('\0') => return Err("a quoted name is empty".into()),
            None => return Ok((name, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fold_unless_quoted() {
        let cases: [(&str, Option<&str>, &str); 6] = [
            ("orders", None, "orders"),
            ("public.Orders", Some("public"), "orders"),
            ("\"Sales\".\"Big \"\"Orders\"\"\"", Some("Sales"), "Big \"Orders\""),
            ("s1.t$2", Some("s1"), "t$2"),
            ("\"a.b\"", None, "a.b"),
            ("größe", None, "größe"),
        ];
        for (text, schema, name) in cases {
            assert_eq!(qualified(text), Ok((schema.map(String::from), name.to_string())), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "a.b.c", "1a", "a b", "\"open", "\"\"", "a.", ".a", &"x".repeat(64)] {
            assert!(qualified(text).is_err(), "{text}");
        }
        assert!(single("a.b").is_err());
        assert!(qualified(&"x".repeat(63)).is_ok());
    }

    #[test]
    fn functions_need_schema_and_types() {
        assert_eq!(function(" public.slug(text) ").as_deref(), Ok("public.slug(text)"));
        assert_eq!(function("public.now2()").as_deref(), Ok("public.now2()"));
        for text in ["slug(text)", "public.slug", "public.slug(text", "public.f(a,,b)"] {
            assert!(function(text).is_err(), "{text}");
        }
    }
}
