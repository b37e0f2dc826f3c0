//! The house rules that the compiler does not know: which layer may use which, how long a file and a function may be, and
//! that nothing outside tests unwraps. It reads the sources as text, comments and strings blanked out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES: usize = 600;
const FUNCTION_LINES: usize = 100;

const LAYER_0: &[&str] = &["wire", "config", "topology", "limits", "error", "shutdown"];
const LAYER_1: &[&str] = &["net", "auth", "sql", "telemetry"];

/// Modules that a module may use besides itself and layer 0. `None` is everything.
fn may_use(module: &str) -> Option<Vec<&'static str>> {
    let upto_cache = [LAYER_1, &["plan", "catalog", "backend", "cache"]].concat();
    Some(match module {
        // 0: nothing above.
        "wire" | "config" | "topology" | "limits" | "error" | "shutdown" => vec![],
        // 1: each stands on layer 0 alone; a login over TLS binds to the channel that `net` knows.
        "net" | "auth" | "sql" | "telemetry" => vec![],
        // 2: the planner is pure.
        "plan" => vec!["sql", "catalog"],
        // 2: what touches servers and Redis; never plan or session, and catalog and cache never backend.
        "backend" | "cache" | "catalog" => vec!["net", "auth", "telemetry"],
        // 3
        "exec" => upto_cache,
        // 4
        "session" => [upto_cache.as_slice(), &["exec"]].concat(),
        // 5: handles.
        "http" | "admin" => vec!["session", "backend", "cache", "telemetry"],
        // 6
        "main" | "lib" | "cli" | "commands" | "app" => return None,
        unknown => panic!("src/{unknown} is in no layer: give it one here and in the design"),
    })
}

struct Source {
    /// Relative to the crate.
    path: PathBuf,
    /// With comments and the insides of strings blanked out.
    code: String,
    is_test: bool,
}

#[test]
fn each_layer_uses_only_what_lies_below_it() {
    let mut faults = BTreeSet::new();
    for source in sources("src") {
        let module = module_of(&source.path);
        let Some(allowed) = may_use(&module) else { continue };
        for (line, used) in crate_uses(&without_tests(&source)) {
            if used != module && !LAYER_0.contains(&used.as_str()) && !allowed.contains(&used.as_str()) {
                faults.insert(format!("{}:{line}: {module} may not use {used}", source.path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn no_file_and_no_function_is_too_long() {
    let mut faults = Vec::new();
    for source in all_sources() {
        let lines = source.code.lines().count();
        if lines > FILE_LINES {
            faults.push(format!("{}: {lines} lines, {FILE_LINES} at most", source.path.display()));
        }
        for function in functions(&source.code) {
            if function.lines > FUNCTION_LINES {
                let Function { name, line, lines } = function;
                faults.push(format!("{}:{line}: fn {name} has {lines} lines", source.path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn nothing_outside_tests_unwraps() {
    let mut faults = Vec::new();
    for source in sources("src").iter().filter(|source| !source.is_test) {
        let code = without_tests(source);
        for (at, _) in code.match_indices(".unwrap()") {
            faults.push(format!("{}:{}: .unwrap()", source.path.display(), line_of(&code, at)));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

// ---- reading the tree ----

fn all_sources() -> Vec<Source> {
    ["src", "tests", "benches"].into_iter().flat_map(sources).collect()
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&root.join(folder), &mut paths);
    paths.sort();
    let mut codes = BTreeMap::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("a source file");
        let relative = path.strip_prefix(root).expect("below the crate").to_path_buf();
        codes.insert(relative, text);
    }
    let tests: BTreeSet<PathBuf> = codes.iter().flat_map(|(path, text)| test_files(path, text)).collect();
    codes
        .into_iter()
        .map(|(path, text)| {
            // `name.rs` holds the tests, or `name/` does.
            let is_test = tests.iter().any(|test| path == *test || path.starts_with(test.with_extension("")));
            Source { code: blank(&text), path, is_test }
        })
        .collect()
}

fn collect(folder: &Path, out: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push(path);
        }
    }
}

/// Files that `#[cfg(test)] mod name;` in `path` brings in, by `#[path]` or by name.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let folder = path.parent().expect("a folder");
    let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
    let children = if ["mod", "lib", "main"].contains(&stem) { folder.to_path_buf() } else { folder.join(stem) };
    for (at, attribute) in text.match_indices("#[cfg(test)]") {
        let mut rest = text[at + attribute.len()..].trim_start();
        let mut named = None;
        while let Some(other) = rest.strip_prefix("#[") {
            let (inside, after) = other.split_once("]\n").unwrap_or((other, ""));
            named = inside.strip_prefix("path = ").map(|name| name.trim_matches('"').to_string()).or(named);
            rest = after.trim_start();
        }
        let Some((declaration, _)) = rest.split_once(';') else { continue };
        let declaration = declaration.strip_prefix("pub(crate) ").unwrap_or(declaration);
        let Some(name) = declaration.strip_prefix("mod ").filter(|name| !name.contains('{')) else { continue };
        out.push(match named {
            Some(named) => folder.join(named),
            None => children.join(format!("{name}.rs")),
        });
    }
    out
}

/// `wire` for `src/wire/frame.rs`, `error` for `src/error.rs`.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix("src").expect("below src");
    let first = below.components().next().expect("a name").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_string()
}

// ---- reading one file ----

/// The text with comments, and what stands in strings and character literals, replaced by blanks; lines stay.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => comment_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' if is_raw_string(bytes, at) => raw_string_end(bytes, at),
            b'\'' => character_end(bytes, at),
            _ => at + 1,
        };
        if end > at + 1 {
            out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        }
        at = end;
    }
    String::from_utf8(out).expect("blanks are ASCII, and literals are replaced whole")
}

fn line_end(bytes: &[u8], from: usize) -> usize {
    bytes[from..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |length| from + length)
}

fn comment_end(bytes: &[u8], from: usize) -> usize {
    let (mut depth, mut at) = (0, from);
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if bytes[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn string_end(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn is_raw_string(bytes: &[u8], at: usize) -> bool {
    // `br"` and `cr"` too; but not the last letter of a name, and not a raw identifier.
    let before = at.checked_sub(1).map(|before| bytes[before]);
    let in_name = before.is_some_and(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    let prefixed = matches!(before, Some(b'b' | b'c'));
    let hashes = bytes[at + 1..].iter().take_while(|byte| **byte == b'#').count();
    (!in_name || prefixed) && bytes.get(at + 1 + hashes) == Some(&b'"')
}

fn raw_string_end(bytes: &[u8], from: usize) -> usize {
    let hashes = bytes[from + 1..].iter().take_while(|byte| **byte == b'#').count();
    let closing = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let start = from + 2 + hashes;
    let found = bytes[start..].windows(closing.len()).position(|window| window == closing);
    found.map_or(bytes.len(), |at| start + at + closing.len())
}

/// The end of `'x'` or `'\n'`; the next byte for a lifetime.
fn character_end(bytes: &[u8], from: usize) -> usize {
    if bytes.get(from + 1) == Some(&b'\\') {
        let close = bytes[from + 3..].iter().position(|byte| *byte == b'\'');
        return close.map_or(from + 1, |close| from + 3 + close + 1);
    }
    // One character is at most four bytes of UTF-8.
    let text = std::str::from_utf8(&bytes[from + 1..(from + 5).min(bytes.len())]);
    let text = text
        .unwrap_or_else(|error| std::str::from_utf8(&bytes[from + 1..from + 1 + error.valid_up_to()]).expect("valid"));
    match text.chars().next() {
        Some(c) if bytes.get(from + 1 + c.len_utf8()) == Some(&b'\'') => from + 2 + c.len_utf8(),
        _ => from + 1,
    }
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The code with every item under `#[cfg(test)]` or `#[test]` blanked out.
fn without_tests(source: &Source) -> String {
    let mut code = source.code.clone();
    if source.is_test {
        return String::new();
    }
    while let Some(at) = ["#[cfg(test)]", "#[test]", "#[tokio::test"].iter().filter_map(|mark| code.find(mark)).min() {
        let end = item_end(&code, at);
        let blanked: String = code[at..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        code = format!("{}{blanked}{}", &code[..at], &code[end..]);
    }
    code
}

/// The end of the item at `at`: its `;`, or its closing brace.
fn item_end(code: &str, at: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => return offset + 1,
            b'{' if depth == 0 => return block_end(code, offset),
            _ => {}
        }
    }
    code.len()
}

/// The place behind the brace that closes the one at `open`.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return offset + 1;
        }
    }
    code.len()
}

/// Each `crate::x`, those of `use crate::{x, y::z}` included, with its line.
fn crate_uses(code: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    for (at, mark) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c == '$' || c == '_' || c.is_alphanumeric()) {
            continue;
        }
        let rest = &code[at + mark.len()..];
        let line = line_of(code, at);
        match rest.strip_prefix('{') {
            None => out.push((line, leading_name(rest))),
            Some(_) => {
                let group = &rest[1..block_end(rest, 0) - 1];
                out.extend(group_heads(group).into_iter().map(|head| (line, head)));
            }
        }
    }
    out.retain(|(_, name)| !name.is_empty());
    out
}

fn leading_name(text: &str) -> String {
    text.trim_start().chars().take_while(|c| *c == '_' || c.is_alphanumeric()).collect()
}

/// The first name of each element of a use group.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0_i32;
    let mut heads = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => heads.push(String::new()),
            c => heads.last_mut().expect("one at least").push(c),
        }
    }
    heads.iter().map(|head| leading_name(head)).collect()
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

/// Every function that has a body, nested ones too.
fn functions(code: &str) -> Vec<Function> {
    let mut out = Vec::new();
    for (at, mark) in code.match_indices("fn ") {
        if code[..at].ends_with(|c: char| c == '_' || c.is_alphanumeric()) {
            continue;
        }
        let name = leading_name(&code[at + mark.len()..]);
        let end = item_end(code, at);
        if !name.is_empty() && code[..end].ends_with('}') {
            let lines = code[at..end].matches('\n').count() + 1;
            out.push(Function { name, line: line_of(code, at), lines });
        }
    }
    out
}

// ---- the checks themselves are checked ----

fn source(text: &str) -> Source {
    Source { path: PathBuf::from("src/wire/x.rs"), code: blank(text), is_test: false }
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = r##"let a = "crate::plan { // \" "; // crate::plan
/* crate::plan /* nested */ crate::plan */ let b = '"'; let c: &'static str = r#"crate::plan " "#; crate::sql::f('\'', b'{');"##;
    let code = blank(text);
    assert_eq!(crate_uses(&code), [(2, "sql".to_string())]);
    assert_eq!(code.lines().count(), 2);
    assert_eq!(code.len(), text.len());
    assert!(!code.contains('{') && code.contains("&'static str"));
}

#[test]
fn every_form_of_use_is_seen() {
    let text = "use crate::wire::{a, b};\nuse crate::{plan, sql::{c, d}, backend::e};\npub(crate) fn f() -> crate::exec::X { $crate::y }\n";
    let names: Vec<String> = crate_uses(text).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["wire", "plan", "sql", "backend", "exec"]);
}

#[test]
fn tests_are_left_out_and_nothing_else() {
    let text = "#[cfg(test)]\nuse crate::plan::A;\nfn f() { x.unwrap() }\n#[cfg(test)]\nmod tests {\n    fn g() { y.unwrap() }\n}\nfn h() {}\n";
    let code = without_tests(&source(text));
    assert!(crate_uses(&code).is_empty());
    assert_eq!(code.matches(".unwrap()").count(), 1);
    assert!(code.contains("fn h() {}") && !code.contains("fn g()"));
}

#[test]
fn test_files_are_found_by_name_and_by_path() {
    let text = "#[cfg(test)]\nmod tests;\n#[cfg(test)]\n#[path = \"lexer_tests.rs\"]\nmod more;\n#[cfg(test)]\nmod inline {\n}\n";
    let found = test_files(Path::new("src/sql/lexer.rs"), text);
    assert_eq!(found, [PathBuf::from("src/sql/lexer/tests.rs"), PathBuf::from("src/sql/lexer_tests.rs")]);
    assert_eq!(test_files(Path::new("src/sql/mod.rs"), "#[cfg(test)]\nmod t;"), [PathBuf::from("src/sql/t.rs")]);
}

#[test]
fn a_function_is_measured_from_its_name_to_its_brace() {
    let body = "    x();\n".repeat(FUNCTION_LINES - 2);
    let found =
        functions(&blank(&format!("fn ok(a: [u8; 3]) {{\n{body}}}\nfn long() {{\n{body}\n}}\nfn decl(f: fn (u8));\n")));
    let lines: Vec<(String, usize)> = found.into_iter().map(|function| (function.name, function.lines)).collect();
    assert_eq!(lines, [("ok".to_string(), FUNCTION_LINES), ("long".to_string(), FUNCTION_LINES + 1)]);
}

#[test]
fn the_table_says_what_the_design_says() {
    let allows = |module: &str, used: &str| may_use(module).is_none_or(|allowed| allowed.contains(&used));
    assert!(allows("plan", "catalog") && !allows("plan", "backend") && !allows("plan", "net"));
    assert!(allows("backend", "auth") && !allows("backend", "plan") && !allows("backend", "session"));
    assert!(!allows("cache", "backend") && !allows("catalog", "backend"));
    assert!(allows("exec", "plan") && !allows("exec", "session"));
    assert!(allows("session", "exec") && !allows("session", "http") && allows("app", "http"));
    assert!(!allows("config", "telemetry") && !allows("net", "auth"));
}
