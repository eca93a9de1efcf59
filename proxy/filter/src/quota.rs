//! The buckets that all workers of this Envoy share.

use std::sync::LazyLock;
use std::time::Instant;

use peltast_engine::Quotas;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static QUOTAS: LazyLock<Quotas> = LazyLock::new(Quotas::new);

/// What requests are counted by. They outlive the programs that say how.
pub(crate) fn quotas() -> &'static Quotas {
    &QUOTAS
}

/// Nanoseconds since some moment, by a clock that never goes back.
pub(crate) fn now() -> u64 {
    START.elapsed().as_nanos() as u64
}
