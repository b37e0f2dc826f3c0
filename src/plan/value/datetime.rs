//! Dates and timestamps from their ISO text form, the only one that means the same under every DateStyle and TimeZone.

/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
const EPOCH_SHIFT_DAYS: i64 = 10_957;
const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// `YYYY-MM-DD`, `infinity` or `-infinity` as days since 2000-01-01; `None` for every other spelling.
pub fn date(text: &str) -> Option<i64> {
    match text.trim_matches(' ') {
        "infinity" => Some(i64::from(i32::MAX)),
        "-infinity" => Some(i64::from(i32::MIN)),
        text => days(text),
    }
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]` without a zone, as microseconds since 2000-01-01. A date alone is its midnight.
pub fn timestamp(text: &str) -> Option<i64> {
    let text = text.trim_matches(' ');
    if let Some(limit) = infinity(text) {
        return Some(limit);
    }
    let (date, clock) = text.split_once([' ', 'T']).unwrap_or((text, "00:00:00"));
    days(date)?.checked_mul(MICROS_PER_DAY)?.checked_add(time(clock)?)
}

/// As [`timestamp`] with an offset (`Z`, `+02`, `-03:30`) that must be there: without one the value hangs on TimeZone.
pub fn timestamptz(text: &str) -> Option<i64> {
    let text = text.trim_matches(' ');
    if let Some(limit) = infinity(text) {
        return Some(limit);
    }
    let (date, clock) = text.split_once([' ', 'T'])?;
    let zone_at = clock.find(['Z', '+', '-'])?;
    let (clock, zone) = clock.split_at(zone_at);
    let local = days(date)?.checked_mul(MICROS_PER_DAY)?.checked_add(time(clock)?)?;
    local.checked_sub(offset(zone)?)
}

/// `HH:MM[:SS[.ffffff]]` as microseconds.
pub fn time(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.split(':');
    let hours = number(parts.next()?, 2).filter(|&hours| hours <= 23)?;
    let minutes = number(parts.next()?, 2).filter(|&minutes| minutes <= 59)?;
    let seconds = parts.next().map_or(Some(0), |part| number(part, 2).filter(|&seconds| seconds <= 59))?;
    if parts.next().is_some() || fraction.len() > 6 || (text.len() != clock.len() && fraction.is_empty()) {
        return None;
    }
    let micros = if fraction.is_empty() { 0 } else { number(&format!("{fraction:0<6}"), 6)? };
    Some(((hours * 60 + minutes) * 60 + seconds) * MICROS_PER_SECOND + micros)
}

fn infinity(text: &str) -> Option<i64> {
    match text {
        "infinity" => Some(i64::MAX),
        "-infinity" => Some(i64::MIN),
        _ => None,
    }
}

fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone[1..].split_once(':').unwrap_or((&zone[1..], "00"));
    let hours = number(hours, 2).filter(|&hours| hours <= 15)?;
    let minutes = number(minutes, 2).filter(|&minutes| minutes <= 59)?;
    Some(sign * (hours * 60 + minutes) * 60 * MICROS_PER_SECOND)
}

fn number(text: &str, width: usize) -> Option<i64> {
    let is_number = text.len() == width && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Days since 2000-01-01 of `YYYY-MM-DD` in the proleptic Gregorian calendar.
fn days(text: &str) -> Option<i64> {
    let mut parts = text.split('-');
    let year = number(parts.next()?, 4).filter(|&year| year > 0)?;
    let month = number(parts.next()?, 2).filter(|month| (1..=12).contains(month))?;
    let day = number(parts.next()?, 2)?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if parts.next().is_some() || !(1..=length).contains(&day) {
        return None;
    }
    // Howard Hinnant's days_from_civil: years start in March, so that the leap day is the last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468 - EPOCH_SHIFT_DAYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iso_texts_are_read() {
        assert_eq!(date("2000-01-01"), Some(0));
        assert_eq!(date("1999-12-31"), Some(-1));
        assert_eq!(date("2024-02-29"), Some(8825));
        assert_eq!(timestamp("2000-01-02 00:00:01.5"), Some(86_401_500_000));
        assert_eq!(timestamptz("2000-01-01 02:00:00+02"), Some(0));
        assert_eq!(timestamptz("2000-01-01T00:00:00Z"), Some(0));
        assert_eq!(timestamptz("infinity"), Some(i64::MAX));
    }

    #[test]
    fn what_hangs_on_a_setting_or_is_no_date_is_not() {
        for text in ["01/02/2003", "2023-02-29", "2023-2-1", "today", "0000-01-01", "20230101", "2000-01-01 BC"] {
            assert_eq!(date(text), None, "{text}");
        }
        assert_eq!(timestamptz("2000-01-01 00:00:00"), None);
        assert_eq!(timestamp("2000-01-01 00:00:00+02"), None);
        assert_eq!(timestamp("2000-01-01 00:00:00.1234567"), None);
    }
}
