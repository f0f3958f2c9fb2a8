//! Points in time as people write them.

/// Seconds since 1970 of `2026-01-31`, `2026-01-31T12:00:00Z`, or a number that says it already; all UTC.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let seconds = from_date(text);
    seconds.ok_or_else(|| "write 2026-01-31, 2026-01-31T12:00:00Z, or seconds since 1970".to_owned())
}

fn from_date(text: &str) -> Option<u64> {
    let (date, time) = text.split_once('T').unwrap_or((text, "00:00:00Z"));
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time.strip_suffix('Z')?, ':')?;
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_days = *days_of_month.get(month.checked_sub(1)? as usize)?;
    if !(1970..=9999).contains(&year) || !(1..=month_days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let leap_days = |before: u64| (before - 1) / 4 - (before - 1) / 100 + (before - 1) / 400;
    let days_before_year = 365 * (year - 1970) + leap_days(year) - leap_days(1970);
    let days_before_month: u64 = days_of_month[..month as usize - 1].iter().sum();
    let days = days_before_year + days_before_month + day - 1;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

/// Three numbers of digits only.
fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator);
    let mut next = || parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok();
    let numbers = [next()?, next()?, next()?];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_seconds_and_anything_else_is_refused() {
        // As `date -u -d TEXT +%s` says.
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2000-03-01T00:00:01Z", 951_868_801),
            ("2026-11-24T17:20:44Z", 1_795_540_844),
            ("2100-03-01", 4_107_542_400),
            ("1700000000", 1_700_000_000),
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        for wrong in
            ["", "2026-13-01", "2026-02-29", "2026-1", "yesterday", "2026-01-01T24:00:00Z", "-1", "2026-01-01T1:1:1"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
