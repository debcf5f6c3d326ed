//! Points in time by the server's clock, as this program prints them.

use jiff::Timestamp;

/// The same moment on a calendar; one that no calendar has is the last one.
pub(crate) fn moment(at: redis_allocator::Timestamp) -> Timestamp {
    i64::try_from(at.as_millis()).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::MAX)
}
