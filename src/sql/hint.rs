//! What a comment asks of pgherd: `/* pgherd: cache=off ttl=30s route=primary */`.

use super::facts::{Hint, Route};

/// Reads one comment, marks included, into `hint`. Keys and values that pgherd does not know change nothing.
pub(super) fn read(comment: &[u8], hint: &mut Hint) {
    let body = match comment {
        [b'/', b'*', body @ .., b'*', b'/'] => body,
        [b'-', b'-', body @ ..] => body,
        _ => return,
    };
    let Some(body) = body.trim_ascii_start().strip_prefix(b"pgherd:") else { return };
    let Ok(body) = std::str::from_utf8(body) else { return };
    for pair in body.split([' ', ',', '\t', '\n', '\r']) {
        match pair.split_once('=') {
            Some(("cache", "off")) => hint.cache = Some(false),
            Some(("cache", "on")) => hint.cache = Some(true),
            Some(("route", "primary")) => hint.route = Some(Route::Primary),
            Some(("route", "replica")) => hint.route = Some(Route::Replica),
            Some(("ttl", value)) => hint.ttl_seconds = seconds(value).or(hint.ttl_seconds),
            _ => {}
        }
    }
}

/// `30s`, `5m`, `2h`, `1d` or plain seconds.
fn seconds(value: &str) -> Option<u32> {
    let digits = value.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match value.get(digits.len()..)? {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    digits.parse::<u32>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(comment: &str) -> Hint {
        let mut hint = Hint::default();
        read(comment.as_bytes(), &mut hint);
        hint
    }

    #[test]
    fn keys_are_read_from_either_kind_of_comment() {
        let all = Hint { cache: Some(false), ttl_seconds: Some(30), route: Some(Route::Primary) };
        assert_eq!(of("/* pgherd: cache=off ttl=30s route=primary */"), all);
        assert_eq!(of("--pgherd:cache=off,ttl=30,route=primary"), all);
        assert_eq!(of("/*pgherd: ttl=5m*/").ttl_seconds, Some(300));
    }

    #[test]
    fn other_comments_and_unknown_values_say_nothing() {
        for comment in ["/* cache=off */", "-- pgherd cache=off", "/* pgherd: cache=maybe ttl=99999999999s ttl=3x */"] {
            assert_eq!(of(comment), Hint::default(), "{comment}");
        }
    }
}
