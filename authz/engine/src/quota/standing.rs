//! What clients are told of limits: the headers of draft-ietf-httpapi-ratelimit-headers-10.

use std::fmt::Write;
use std::sync::Arc;

use super::limit::Limit;

const SECOND: u64 = 1_000_000_000;

/// How an admitted request's client stands, for the response.
#[derive(Debug, PartialEq, Eq)]
pub struct Standing {
    /// The header [`Self::POLICY`]: every limit that counted the request.
    pub policy: Arc<str>,
    /// The header [`Self::LIMIT`]: what is left of the nearest of them.
    pub limit: String,
}

impl Standing {
    /// Name of the header that tells limits.
    pub const POLICY: &str = "ratelimit-policy";
    /// Name of the header that tells what is left.
    pub const LIMIT: &str = "ratelimit";

    /// Both headers, by their names.
    pub fn into_headers(self) -> [(String, String); 2] {
        [(Self::POLICY.to_owned(), self.policy.as_ref().to_owned()), (Self::LIMIT.to_owned(), self.limit)]
    }
}

/// The rate that has the fewest left, or that is empty for longest.
pub(crate) struct Nearest<'l> {
    pub(crate) limit: &'l Limit,
    pub(crate) rate: usize,
    pub(crate) left: u64,
    /// Until its bucket is full again; of an empty one, until there is a token in it. 0 where that is not known.
    pub(crate) nanoseconds: u64,
}

impl Nearest<'_> {
    /// What is told of it and of all `limits` that count the request.
    pub(crate) fn standing<'l>(&self, mut limits: impl ExactSizeIterator<Item = &'l Limit>) -> Standing {
        let policy = match (limits.len(), limits.next()) {
            (1, Some(only)) => Arc::clone(&only.told),
            (_, first) => {
                first.into_iter().chain(limits).map(|limit| &*limit.told).collect::<Vec<_>>().join(", ").into()
            }
        };
        let mut limit = String::with_capacity(48);
        let name = self.limit.rate_name(self.rate);
        let _ = write!(limit, "{name};r={}", self.left); // to a String: never an error
        if self.nanoseconds > 0 {
            let _ = write!(limit, ";t={}", self.seconds());
        }
        Standing { policy, limit }
    }

    /// Whole seconds, rounded up: who waits that long does not come too early.
    pub(crate) fn seconds(&self) -> u64 {
        self.nanoseconds.div_ceil(SECOND)
    }
}
