//! The time that a policy may take, on the clock that is the policy's own.
//!
//! The interpreter's timer runs by the wall: it runs on while the machine gives this thread's processor to others, and
//! so ends policies that have hardly begun. Such an evaluation is begun again.

use std::time::Duration;

use regorus::{Engine, LimitError, Value};

/// Evaluates `entrypoint`, which may take `limit` of this thread's time, and one evaluation more.
///
/// # Errors
/// For people: why there is no value.
pub(super) fn evaluate(engine: &mut Engine, entrypoint: &str, limit: Duration) -> Result<Value, String> {
    let run = || {
        let _ = engine.take_prints(); // of what was interrupted
        engine.eval_rule(entrypoint.to_owned())
    };
    again_where_interrupted(limit, thread_time, run, |error| error.is::<LimitError>())
        .map_err(|error| error.to_string())
}

fn again_where_interrupted<T, E>(
    limit: Duration,
    clock: impl Fn() -> Duration,
    mut run: impl FnMut() -> Result<T, E>,
    is_timeout: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let start = clock();
    loop {
        match run() {
            Err(error) if is_timeout(&error) && clock().saturating_sub(start) < limit => {}
            result => return result,
        }
    }
}

/// What this thread has had of processors.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes to a value of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const TIMEOUT: &str = "timeout";

    /// How often a run is begun that takes `each` milliseconds of 5 and ends with `results` in turn.
    fn runs(each: u64, results: &[Result<(), &'static str>]) -> (usize, Result<(), &'static str>) {
        let (time, begun) = (Cell::new(7), Cell::new(0));
        let run = || {
            time.set(time.get() + each);
            begun.set(begun.get() + 1);
            results[begun.get() - 1]
        };
        let clock = || Duration::from_millis(time.get());
        let result = again_where_interrupted(Duration::from_millis(5), clock, run, |error| *error == TIMEOUT);
        (begun.get(), result)
    }

    #[test]
    fn what_was_interrupted_is_begun_again_and_what_is_slow_is_not() {
        let timeouts = [Err(TIMEOUT); 9];
        assert_eq!(runs(1, &[Err(TIMEOUT), Err(TIMEOUT), Ok(())]), (3, Ok(())));
        assert_eq!(runs(5, &timeouts), (1, Err(TIMEOUT)));
        assert_eq!(runs(1, &timeouts), (5, Err(TIMEOUT)), "no more than its time in all");
        assert_eq!(runs(1, &[Err("other"), Ok(())]), (1, Err("other")));
    }

    #[test]
    fn the_clock_runs_with_its_thread_only() {
        let work = || {
            while thread_time() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
        };
        let start = thread_time();
        std::thread::spawn(work).join().expect("ended");
        assert!(thread_time() - start < Duration::from_millis(20), "another's time is not this one's");
    }
}
