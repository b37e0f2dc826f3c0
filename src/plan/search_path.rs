//! `search_path` as PostgreSQL reads it: which schemas an unqualified name is looked up in, in order.

use crate::catalog::model::Catalog;

/// The schemas that `setting` names for `role`, as far as they exist: `"$user"` replaced, `pg_catalog` first unless it is listed.
///
/// `pg_temp` is left out: whether a session has temporary objects is asked separately. A setting that PostgreSQL could not
/// have accepted yields `pg_catalog` alone.
pub fn resolve_search_path(setting: &str, role: &str, catalog: &Catalog) -> Vec<Box<str>> {
    let exists = |name: &String| catalog.schemas.iter().any(|schema| **schema == **name);
    let mut path: Vec<Box<str>> = listed(setting, role).into_iter().filter(exists).map(Into::into).collect();
    if !path.iter().any(|schema| &**schema == "pg_catalog") {
        path.insert(0, "pg_catalog".into());
    }
    path
}

/// The schemas that `setting` names for `role`, `"$user"` replaced, each where it comes first, whether they exist or not.
pub fn listed(setting: &str, role: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in split(setting).unwrap_or_default() {
        let name = if name == "$user" { role.to_owned() } else { name };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether what is created without a schema becomes temporary: `pg_temp` comes before every schema that exists.
pub fn creates_temporary(setting: &str, role: &str, catalog: &Catalog) -> bool {
    let exists = |name: &str| catalog.schemas.iter().any(|schema| **schema == *name);
    let mut names = split(setting).unwrap_or_default().into_iter();
    let first = names.find(|name| name == "pg_temp" || exists(if name == "$user" { role } else { name }));
    first.is_some_and(|name| name == "pg_temp")
}

/// `SplitIdentifierString`: identifiers between commas, folded unless quoted. `None` for what PostgreSQL would refuse.
fn split(setting: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = setting.trim_ascii();
    while !rest.is_empty() {
        let (name, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_name(quoted)?,
            None => {
                let end = rest.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(rest.len());
                let (name, behind) = rest.split_at(end);
                if name.is_empty() {
                    return None;
                }
                (name.to_ascii_lowercase(), behind)
            }
        };
        names.push(name);
        rest = behind.trim_ascii_start();
        match rest.strip_prefix(',') {
            Some(after) if !after.trim_ascii().is_empty() => rest = after.trim_ascii_start(),
            None if rest.is_empty() => {}
            _ => return None,
        }
    }
    Some(names)
}

fn quoted_name(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (part, behind) = rest.split_once('"')?;
        name.push_str(part);
        match behind.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Some((name, behind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        Catalog {
            schemas: ["pg_catalog", "public", "app", "Mixed", "a,\"b"].map(Into::into).to_vec(),
            ..Catalog::default()
        }
    }

    #[test]
    fn names_are_folded_quoted_replaced_and_dropped_where_they_do_not_exist() {
        for (setting, role, expected) in [
            ("\"$user\", public", "app", vec!["pg_catalog", "app", "public"]),
            ("\"$user\", public", "nobody", vec!["pg_catalog", "public"]),
            ("$user,public", "app", vec!["pg_catalog", "app", "public"]),
            ("PUBLIC , \"Mixed\",mixed", "x", vec!["pg_catalog", "public", "Mixed"]),
            ("public, pg_catalog", "x", vec!["public", "pg_catalog"]),
            ("pg_temp, public, public", "x", vec!["pg_catalog", "public"]),
            ("\"a,\"\"b\"", "x", vec!["pg_catalog", "a,\"b"]),
            ("\"\"", "x", vec!["pg_catalog"]),
            ("", "x", vec!["pg_catalog"]),
            ("public,", "x", vec!["pg_catalog"]),
            ("\"open", "x", vec!["pg_catalog"]),
        ] {
            let path = resolve_search_path(setting, role, &catalog());
            assert_eq!(path.iter().map(|schema| &**schema).collect::<Vec<_>>(), expected, "{setting}");
        }
    }

    #[test]
    fn what_pg_temp_comes_before_is_created_there() {
        assert!(creates_temporary("pg_temp, public", "x", &catalog()));
        assert!(creates_temporary("nowhere, pg_temp, public", "x", &catalog()));
        assert!(!creates_temporary("public, pg_temp", "x", &catalog()));
        assert!(!creates_temporary("", "x", &catalog()));
    }
}
