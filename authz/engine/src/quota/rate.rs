//! The generic cell rate algorithm (ITU-T I.371, Annex A), on integer nanoseconds of a clock that never goes back.
//!
//! All that is kept of a bucket is its *arrival time*: when it will be full again. A token takes one interval to come
//! back, rounded up to a whole nanosecond, so that rounding never admits more. In any time, what a bucket admits is at
//! most its burst and what came back in that time.

/// How fast tokens come back, and how many there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// How long one token takes to come back.
    interval: u64,
    /// How long all of them take.
    full: u64,
}

impl Rate {
    /// `requests` in `period` nanoseconds, `burst` of them at once; none where a number is 0, more than one token comes
    /// in a nanosecond, or an empty bucket takes more than centuries to fill.
    pub(crate) fn new(requests: u64, period: u64, burst: u64) -> Option<Self> {
        if requests == 0 || requests > period || burst == 0 {
            return None;
        }
        let interval = period.div_ceil(requests);
        let full = interval.checked_mul(burst).filter(|full| *full <= u64::MAX / 4)?;
        Some(Self { interval, full })
    }

    /// How many tokens are in the bucket.
    pub(crate) fn available(self, arrival: u64, now: u64) -> u64 {
        self.full.saturating_sub(arrival.saturating_sub(now)) / self.interval
    }

    /// How long until a token is in the bucket.
    pub(crate) fn wait(self, arrival: u64, now: u64) -> u64 {
        (arrival.saturating_sub(now) + self.interval).saturating_sub(self.full)
    }

    /// The arrival time once a token was taken; whoever takes it looks first that there is one.
    pub(crate) fn take(self, arrival: u64, now: u64) -> u64 {
        arrival.max(now) + self.interval
    }

    /// The arrival time once a token came back that was taken `elapsed` ago. What came back by itself meanwhile is not
    /// given again: the bucket may have been full and emptied since.
    pub(crate) fn give_back(self, arrival: u64, elapsed: u64) -> u64 {
        arrival.saturating_sub(self.interval.saturating_sub(elapsed))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_is_admitted_at_once_and_then_one_for_each_interval() {
        let rate = Rate::new(10, SECOND, 3).expect("a rate");
        let (mut arrival, now) = (0, 5 * SECOND);
        for left in [3, 2, 1] {
            assert_eq!((rate.available(arrival, now), rate.wait(arrival, now)), (left, 0));
            arrival = rate.take(arrival, now);
        }
        assert_eq!((rate.available(arrival, now), rate.wait(arrival, now)), (0, SECOND / 10));
        assert_eq!(rate.available(arrival, now + SECOND / 10), 1);
        assert_eq!(rate.available(arrival, now + SECOND), 3, "never more than the burst");
    }

    #[test]
    fn what_is_no_rate_is_none() {
        let table = [(0, 1, 1), (1, 0, 1), (1, 1, 0), (2, 1, 1), (1, u64::MAX, 1), (1, SECOND, u64::MAX)];
        for (requests, period, burst) in table {
            assert_eq!(Rate::new(requests, period, burst), None, "{requests} {period} {burst}");
        }
    }

    proptest! {
        /// Of any history of asking and of giving back: in each span of time at most burst and what came back in it.
        #[test]
        fn no_span_admits_more_than_the_burst_and_what_came_back(
            requests in 1u64..50, period in 50u64..5000, burst in 1u64..20,
            steps in prop::collection::vec((0u64..200, any::<bool>(), 0u64..300), 1..120),
        ) {
            let rate = Rate::new(requests, period, burst).expect("a rate");
            let (mut arrival, mut now, mut admitted) = (0, 1_000_000, Vec::new());
            let mut returns: Vec<(u64, u64)> = Vec::new();
            for (passed, keeps, later) in steps {
                now += passed;
                for (taken, _) in returns.extract_if(.., |(_, due)| *due <= now) {
                    arrival = rate.give_back(arrival, now - taken);
                }
                if rate.available(arrival, now) > 0 {
                    prop_assert_eq!(rate.wait(arrival, now), 0);
                    arrival = rate.take(arrival, now);
                    if keeps { admitted.push(now) } else { returns.push((now, now + later)) }
                } else {
                    prop_assert!(rate.wait(arrival, now) > 0);
                }
            }
            for (first, start) in admitted.iter().enumerate() {
                for (last, end) in admitted.iter().enumerate().skip(first) {
                    let most = burst + (end - start) / period.div_ceil(requests);
                    prop_assert!((last - first + 1) as u64 <= most, "{} within {}", last - first + 1, end - start);
                }
            }
        }
    }
}
