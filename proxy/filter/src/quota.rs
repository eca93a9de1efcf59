//! What requests are counted by: the buckets that all workers of this Envoy share, and what it borrows of limits that
//! many sidecars share, in messages of `peltast.authz.v1` over gRPC.

use std::sync::LazyLock;
use std::time::Instant;

use peltast_engine::quota::{Lent, Mount, Quotas, Waker, Want};
use prost::Message;

use crate::envoy::Stream;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static QUOTAS: LazyLock<Quotas> = LazyLock::new(Quotas::for_sidecar);

/// What requests are counted by. It outlives the programs that say how.
pub(crate) fn quotas() -> &'static Quotas {
    &QUOTAS
}

/// Nanoseconds since some moment, by a clock that never goes back.
pub(crate) fn now() -> u64 {
    START.elapsed().as_nanos() as u64
}

/// A stream that can be woken.
pub(crate) struct OfStream<'s>(pub(crate) &'s Stream);

impl Mount for OfStream<'_> {
    fn now(&self) -> u64 {
        now()
    }

    fn waker(&self) -> Option<Waker> {
        let scheduler = self.0.scheduler();
        Some(Box::new(move || scheduler.wake()))
    }
}

#[derive(Clone, PartialEq, Message)]
struct BorrowManyRequest {
    #[prost(message, repeated, tag = "1")]
    borrows: Vec<PolicyBorrow>,
}

#[derive(Clone, PartialEq, Message)]
struct PolicyBorrow {
    #[prost(string, tag = "1")]
    policy: String,
    #[prost(uint32, tag = "2")]
    limit: u32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(uint32, tag = "4")]
    tokens: u32,
    #[prost(message, repeated, tag = "5")]
    returned: Vec<Returned>,
}

#[derive(Clone, PartialEq, Message)]
struct Returned {
    #[prost(string, tag = "1")]
    lease: String,
    #[prost(uint32, tag = "2")]
    unused: u32,
}

#[derive(Clone, PartialEq, Message)]
struct BorrowManyResponse {
    #[prost(message, repeated, tag = "1")]
    answers: Vec<PolicyLent>,
}

#[derive(Clone, PartialEq, Message)]
struct PolicyLent {
    #[prost(message, optional, tag = "1")]
    lent: Option<BorrowResponse>,
    #[prost(string, tag = "2")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct BorrowResponse {
    #[prost(string, tag = "1")]
    lease: String,
    #[prost(uint32, tag = "2")]
    tokens: u32,
    #[prost(uint64, tag = "3")]
    valid_milliseconds: u64,
    #[prost(uint64, tag = "4")]
    retry_after_milliseconds: u64,
}

/// The message that asks for `wants`, as gRPC frames it: uncompressed, and its length.
pub(crate) fn question(wants: &[Want]) -> Vec<u8> {
    let returned = |(lease, unused): &(String, u32)| Returned { lease: lease.clone(), unused: *unused };
    let borrow = |want: &Want| PolicyBorrow {
        policy: want.of.policy.to_string(),
        limit: want.of.limit,
        key: want.of.key.to_vec(),
        tokens: want.tokens,
        returned: want.returned.iter().map(returned).collect(),
    };
    let message = BorrowManyRequest { borrows: wants.iter().map(borrow).collect() }.encode_to_vec();
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed
}

/// An answer to each of `number` wants, out of a frame.
///
/// # Errors
/// For people: why there is none.
pub(crate) fn answers(frame: &[u8], number: usize) -> Result<Vec<Lent>, String> {
    let broken = || "the quota service's answer is not whole".to_owned();
    let (head, message) = frame.split_at_checked(5).ok_or_else(broken)?;
    if head[0] != 0 || head[1..] != (message.len() as u32).to_be_bytes() {
        return Err(broken());
    }
    let decoded =
        BorrowManyResponse::decode(message).map_err(|error| format!("the quota service's answer: {error}"))?;
    let answers: Vec<Lent> = decoded.answers.into_iter().map(lent).collect();
    if answers.len() == number {
        Ok(answers)
    } else {
        Err(broken())
    }
}

fn lent(answer: PolicyLent) -> Lent {
    match answer.lent {
        None => Lent::Failed(answer.error),
        Some(lent) if lent.tokens == 0 => Lent::None(lent.retry_after_milliseconds),
        Some(lent) => Lent::Tokens { lease: lent.lease, tokens: lent.tokens, valid_ms: lent.valid_milliseconds },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(answers: Vec<PolicyLent>) -> Vec<u8> {
        let message = BorrowManyResponse { answers }.encode_to_vec();
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    }

    fn answer(tokens: u32) -> PolicyLent {
        let lent =
            BorrowResponse { lease: "l".to_owned(), tokens, valid_milliseconds: 2000, retry_after_milliseconds: 7 };
        PolicyLent { lent: Some(lent), error: String::new() }
    }

    #[test]
    fn each_want_has_an_answer() {
        let away = PolicyLent { lent: None, error: "away".to_owned() };
        let frame = framed(vec![answer(3), answer(0), away]);
        let tokens = Lent::Tokens { lease: "l".to_owned(), tokens: 3, valid_ms: 2000 };
        assert_eq!(answers(&frame, 3), Ok(vec![tokens, Lent::None(7), Lent::Failed("away".to_owned())]));
        assert!(answers(&frame, 2).is_err(), "another number");
        assert!(answers(&frame[..frame.len() - 1], 3).is_err(), "cut short");
        assert!(answers(b"", 0).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_answered_is_read_or_refused(frame: Vec<u8>, number in 0usize..3) {
            let _ = answers(&frame, number);
            let _ = answers(&[&[0][..], &(frame.len() as u32).to_be_bytes(), &frame].concat(), number);
        }
    }
}
