//! Durations (`30s`, `250ms`, `1h30m`) and sizes (`256MiB`, `64MB`, plain bytes) as people write them.

use std::time::Duration;

/// Longest duration that is taken: ten years. Beyond it a unit was surely mistyped, and sums could overflow an `Instant`.
const LONGEST_SECONDS: u64 = 10 * 366 * 24 * 3600;

/// Reads a duration: one or more numbers, each with a unit of `us ms s m h d`, largest first or not; `0` needs none.
///
/// # Errors
/// What is wrong with the text, for people.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, after) = split_number(rest)?;
        let unit_len = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let micros: u64 = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" | "min" => 60_000_000,
            "h" => 3_600_000_000,
            "d" => 86_400_000_000,
            "" => return Err("a duration needs a unit: us, ms, s, m, h or d".into()),
            other => return Err(format!("\"{other}\" is not a unit of time; they are us, ms, s, m, h and d")),
        };
        let part = number.checked_mul(micros).ok_or("the duration is too long")?;
        total = total.checked_add(Duration::from_micros(part)).ok_or("the duration is too long")?;
        rest = after.trim_start();
    }
    if text.is_empty() {
        return Err("the duration is empty".into());
    }
    if total.as_secs() > LONGEST_SECONDS {
        return Err("the duration is longer than ten years".into());
    }
    Ok(total)
}

/// Reads a size in bytes: a number, alone or with a unit of `B KB MB GB TB` (powers of 1000) or `KiB MiB GiB TiB` (of 1024).
///
/// # Errors
/// What is wrong with the text, for people.
pub fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_number(text.trim())?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        other => {
            return Err(format!(
                "\"{other}\" is not a unit of size; they are B, KB, MB, GB, TB, KiB, MiB, GiB and TiB"
            ));
        }
    };
    number.checked_mul(factor).ok_or_else(|| "the size is too large".into())
}

/// Splits the whole number at the front from what follows it.
fn split_number(text: &str) -> Result<(u64, &str), String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    if number.is_empty() {
        return Err("it must begin with a whole number".into());
    }
    let number = number.parse().map_err(|_| "the number is too large".to_string())?;
    Ok((number, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_unit_and_in_sums() {
        let cases = [
            ("250ms", Duration::from_millis(250)),
            ("30s", Duration::from_secs(30)),
            ("5m", Duration::from_secs(300)),
            ("1h", Duration::from_secs(3600)),
            ("1h30m", Duration::from_secs(5400)),
            ("2d", Duration::from_secs(172_800)),
            ("500us", Duration::from_micros(500)),
            ("0", Duration::ZERO),
            (" 10 s ", Duration::from_secs(10)),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn wrong_durations_say_what_is_wrong() {
        for (text, part) in [
            ("30", "needs a unit"),
            ("", "empty"),
            ("s", "begin with a whole number"),
            ("1.5s", "needs a unit"),
            ("5 minutes", "\"minutes\" is not a unit"),
            ("-1s", "begin with a whole number"),
            ("99999999999999999999s", "too large"),
            ("18446744073709551615h", "too long"),
            ("11000d", "ten years"),
        ] {
            let error = duration(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        for (text, expected) in [
            ("0", 0),
            ("1024", 1024),
            ("64MB", 64_000_000),
            ("256MiB", 268_435_456),
            ("1GiB", 1 << 30),
            ("2 KiB", 2048),
        ] {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for text in ["", "MiB", "1.5GB", "12XB", "18446744073709551615TB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
