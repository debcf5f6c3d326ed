//! Saying each trouble once: a failure that is tried again and again is news when it is another one than the last time.

use redis_allocator::Error;

/// The trouble with one thing that is tried again and again.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    category: Option<&'static str>,
}

impl Complaint {
    /// It failed. Whether it had not, or in another way, the last time.
    pub(crate) fn is_news(&mut self, error: &Error) -> bool {
        let category = error.category();
        self.category.replace(category) != Some(category)
    }

    /// It succeeded. Whether it had failed the last time.
    pub(crate) fn is_over(&mut self) -> bool {
        self.category.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_is_news_once_and_again_after_it_was_over() {
        let lost = || Error::UnknownPool { pool: "gpus".parse().unwrap() };
        let mut complaint = Complaint::default();
        assert!(!complaint.is_over());
        assert!(complaint.is_news(&lost()) && !complaint.is_news(&lost()));
        assert!(complaint.is_over() && complaint.is_news(&lost()));
    }
}
