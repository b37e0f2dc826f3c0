//! Inputs that look like something: words of the languages that the targets read, in any order.

/// Words for texts.
pub const WORDS: &[&str] = &[
    "select ",
    "insert into ",
    "update ",
    "delete from ",
    "merge into ",
    "with ",
    "as ",
    "(",
    ")",
    ",",
    ";",
    " ",
    "\n",
    "--",
    "/*",
    "*/",
    "'",
    "\"",
    "$$",
    "$a$",
    "E'",
    "U&'",
    "U&\"",
    "N'",
    "B'",
    "X'",
    "\\",
    "''",
    "from ",
    "where ",
    "for update ",
    "into ",
    "only ",
    "t ",
    "a",
    "1",
    "0x",
    "1.5e",
    "$1",
    "::",
    ":=",
    "..",
    ".",
    "=",
    "<>",
    "||",
    "+",
    "-",
    "@",
    "explain ",
    "analyze ",
    "route ",
    "set ",
    "local ",
    "role ",
    "session authorization ",
    "to ",
    "default ",
    "begin ",
    "commit ",
    "rollback to ",
    "prepare ",
    "execute ",
    "declare ",
    "cursor ",
    "with hold ",
    "copy ",
    "stdin ",
    "stdout ",
    "create temp table ",
    "function ",
    "begin atomic ",
    "end ",
    "case ",
    "values ",
    "table ",
    "union ",
    "order by ",
    "limit ",
    "lateral ",
    "set_config(",
    "nextval(",
    "now()",
    "returning ",
    "materialized ",
    "recursive ",
    "tablesample ",
    "uescape ",
    "interval ",
    "date ",
    "é",
    "\u{0}",
    "on",
    "off",
];

/// A text of those words, one for each byte.
pub fn text(choices: &[u8]) -> Vec<u8> {
    choices.iter().flat_map(|&choice| WORDS[usize::from(choice) % WORDS.len()].bytes()).collect()
}

/// A seed with parts of it replaced, doubled, cut or overwritten, as the choices say.
pub fn mutated(seed: &[u8], choices: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for step in choices.chunks_exact(3) {
        let [what, place, with] = [step[0], step[1], step[2]];
        let at = usize::from(place) * bytes.len() / 256;
        match what % 6 {
            0 if at < bytes.len() => bytes[at] = with,
            1 => bytes.insert(at, with),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.truncate(at.max(1)),
            4 => bytes.splice(at..at, WORDS[usize::from(with) % WORDS.len()].bytes()).for_each(drop),
            _ => {
                let end = (at + usize::from(with % 16)).min(bytes.len());
                let part = bytes[at.min(end)..end].to_vec();
                bytes.splice(at..at, part).for_each(drop);
            }
        }
    }
    bytes
}
