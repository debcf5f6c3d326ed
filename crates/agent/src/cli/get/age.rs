//! Points in time as a table shows them: how long ago, or how far ahead. In JSON and YAML they are RFC 3339.

use jiff::Timestamp;

/// Two units at most, and one from ten of the larger on, as kubectl prints ages: `45s`, `3m20s`, `15m`, `2h5m`, `4d`.
pub(super) fn short(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |large: u64, unit: &str, small: u64, below: &str| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{below}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ => format!("{days}d"),
    }
}

/// How long ago. What lies ahead by a clock's error is `0s`.
pub(super) fn since(then: Timestamp, now: Timestamp) -> String {
    short(u64::try_from(now.as_second() - then.as_second()).unwrap_or(0))
}

/// How far ahead: `in 30s`, `overdue 2s`, or `never` for what has no end.
pub(super) fn until(then: Option<Timestamp>, now: Timestamp) -> String {
    let Some(then) = then else { return "never".into() };
    let seconds = then.as_second() - now.as_second();
    match u64::try_from(seconds) {
        Ok(ahead) => format!("in {}", short(ahead)),
        Err(_) => format!("overdue {}", short(seconds.unsigned_abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_like_kubectls() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (900, "15m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (90_000, "25h"),
            (180_000, "2d2h"),
            (864_000, "10d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(short(seconds), text);
        }
    }

    #[test]
    fn the_future_and_the_past_are_told_apart() {
        let now = Timestamp::from_second(1000).unwrap();
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(since(at(970), now), "30s");
        assert_eq!(since(at(1001), now), "0s");
        assert_eq!(until(Some(at(1030)), now), "in 30s");
        assert_eq!(until(Some(at(998)), now), "overdue 2s");
        assert_eq!(until(None, now), "never");
    }
}
