//! What a record costs its writer: appended to a spool, and the code and the ratchet alone. Prints nanoseconds, the
//! fastest of some rounds.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use peltast_engine::ratchet::Root;
use peltast_engine::record::{first_link, next_link, Field, Kind};
use peltast_engine::spool::Spool;
use peltast_engine::start::Start;
use peltast_engine::usage::Usage;

const ROUNDS: usize = 9;
const RECORDS: u32 = 5_000;

fn fastest(mut work: impl FnMut()) -> f64 {
    let mut round = || {
        let started = Instant::now();
        (0..RECORDS).for_each(|_| work());
        started.elapsed().as_nanos() as f64 / f64::from(RECORDS)
    };
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn main() {
    let root = tempfile::tempdir().expect("a folder");
    let usage = Arc::new(Usage::open(root.path(), u64::MAX).expect("usage"));
    let start = Start::parse(&[&b"PLTSTRT1"[..], &[1; 64]].concat()).expect("a start");
    let mut spool = Spool::create(root.path(), Some(0), Arc::new(start), usage, 1).expect("a spool");
    let value = [b'x'; 24];
    let append = fastest(|| {
        let written = spool.append(Kind::Decision, 2, |fields| (0..20).for_each(|_| fields.bytes(Field::Path, &value)));
        written.expect("written");
    });
    let (mut key, mut link) = (Root::new([7; 32]).next_spool(), first_link());
    let ratchet = fastest(|| {
        black_box(key.mac(black_box(&link)));
        key.advance();
    });
    let body = [0; 620];
    let chain = fastest(|| link = next_link(&link, black_box(&body)));
    println!(r#"{{"append": {append:.0}, "code_and_ratchet": {ratchet:.0}, "link": {chain:.0}}}"#);
}
