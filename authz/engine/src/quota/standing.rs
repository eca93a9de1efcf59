//! What clients are told of limits: the headers of draft-ietf-httpapi-ratelimit-headers-10.

use super::limit::Limit;

const SECOND: u64 = 1_000_000_000;

/// How an admitted request's client stands, for the response.
#[derive(Debug, PartialEq, Eq)]
pub struct Standing {
    /// The header [`Self::POLICY`]: every limit that counted the request.
    pub policy: Box<str>,
    /// The header [`Self::LIMIT`]: what is left of the nearest of them.
    pub limit: Box<str>,
}

impl Standing {
    /// Name of the header that tells limits.
    pub const POLICY: &str = "ratelimit-policy";
    /// Name of the header that tells what is left.
    pub const LIMIT: &str = "ratelimit";

    /// Both headers, by their names.
    pub fn into_headers(self) -> [(String, String); 2] {
        [(Self::POLICY.to_owned(), self.policy.into()), (Self::LIMIT.to_owned(), self.limit.into())]
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
    pub(crate) fn standing<'l>(&self, limits: impl Iterator<Item = &'l Limit>) -> Standing {
        let told: Vec<&str> = limits.map(|limit| &*limit.told).collect();
        let mut limit = format!("{};r={}", self.limit.rate_name(self.rate), self.left);
        if self.nanoseconds > 0 {
            limit.push_str(&format!(";t={}", self.seconds()));
        }
        Standing { policy: told.join(", ").into(), limit: limit.into() }
    }

    /// Whole seconds, rounded up: who waits that long does not come too early.
    pub(crate) fn seconds(&self) -> u64 {
        self.nanoseconds.div_ceil(SECOND)
    }
}
