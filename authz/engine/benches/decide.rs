//! What a decision costs in the engine alone, for `benchmarks/decide.py`, which makes the input and runs this.
//!
//! Arguments: files with a program, key sets, and requests (a list of objects; see [`Asked`]). Prints one JSON object.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use peltast_engine::{
    Connection, Decider, HeaderList, Http, KeySets, Program, Request, Revocations, Told, Trust, Verdict,
};
use serde::Deserialize;

/// Rounds of which the fastest counts: whatever else runs on the machine makes the others slower.
const ROUNDS: usize = 9;
/// Different requests that are asked again and again for the cost of a cached decision.
const HOT: usize = 64;
const CACHED_DECISIONS: usize = 200_000;

/// Counts the bytes that are held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller's.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A request, as the file gives it.
#[derive(Deserialize)]
struct Asked {
    principal: String,
    path: String,
    token: Option<String>,
}

struct Bench {
    program: Arc<Program>,
    keys: KeySets,
    revocations: Revocations,
    requests: Vec<(Asked, HeaderList)>,
    now: u64,
}

impl Bench {
    fn read(program: &str, keys: &str, requests: &str) -> Self {
        let read = |file: &str| std::fs::read(file).expect(file);
        let asked: Vec<Asked> = serde_json::from_slice(&read(requests)).expect("requests");
        let with_headers = |asked: Asked| {
            let token = asked.token.as_ref().map(|token| ("authorization", format!("Bearer {token}")));
            let headers = [("user-agent", "bench".to_owned())].into_iter().chain(token);
            let headers = HeaderList(headers.map(|(name, value)| (name.into(), value.into())).collect());
            (asked, headers)
        };
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        Self {
            program: Arc::new(Program::load(&read(program)).expect("a program")),
            keys: KeySets::load(&read(keys)).expect("key sets"),
            revocations: Revocations::default(),
            requests: asked.into_iter().map(with_headers).collect(),
            now: since.as_millis() as u64,
        }
    }

    /// Decides request `index`; it must be allowed, from memory or not, as `cached` says.
    fn decide(&self, decider: &mut Decider, index: usize, cached: bool) {
        let (asked, headers) = &self.requests[index];
        let connection =
            Connection { source_principal: Some(&asked.principal), destination_port: 8443, ..Connection::default() };
        let http = Http {
            method: b"GET",
            host: b"server.bench.svc.cluster.local",
            path: asked.path.as_bytes(),
            scheme: b"https",
            protocol: b"HTTP/1.1",
            headers,
            body: None,
            told: Told::All,
        };
        let request = Request { connection, http: Some(http) };
        let trust = Trust { keys: &self.keys, revocations: &self.revocations };
        match black_box(decider.decide(&self.program, &trust, &request, self.now)) {
            Verdict::Decided(answer) => {
                assert!(answer.cached == cached && answer.decision.status == 200, "{:?}", answer.decision);
            }
            Verdict::Ask(_) | Verdict::AwaitBody(_) => panic!("nobody is asked"),
        }
    }

    /// Nanoseconds a decision that is not in memory, and the bytes that all of them hold. The first request is asked
    /// before: what comes with it, perhaps a token that all carry, is known then.
    fn uncached(&self) -> (f64, usize) {
        let held = HELD.load(Ordering::Relaxed);
        let mut decider = Decider::for_sidecar();
        self.decide(&mut decider, 0, false);
        let start = cpu_ns();
        for index in 1..self.requests.len() {
            self.decide(&mut decider, index, false);
        }
        let took = (cpu_ns() - start) as f64 / (self.requests.len() - 1) as f64;
        (took, HELD.load(Ordering::Relaxed) - held)
    }

    /// Nanoseconds a decision that is in memory.
    fn cached(&self) -> f64 {
        let mut decider = Decider::for_sidecar();
        for index in 0..HOT {
            self.decide(&mut decider, index, false);
        }
        let start = cpu_ns();
        for number in 0..CACHED_DECISIONS {
            self.decide(&mut decider, number % HOT, true);
        }
        (cpu_ns() - start) as f64 / CACHED_DECISIONS as f64
    }
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours to be written to.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn main() {
    let files: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [program, keys, requests] = &files[..] else { panic!("a program, key sets and requests are expected") };
    let bench = Bench::read(program, keys, requests);
    let fastest = |measure: &dyn Fn() -> f64| (0..ROUNDS).map(|_| measure()).fold(f64::INFINITY, f64::min);
    let result = serde_json::json!({
        "uncached_ns": fastest(&|| bench.uncached().0),
        "cached_ns": fastest(&|| bench.cached()),
        "bytes": bench.uncached().1,
    });
    println!("{result}");
}
