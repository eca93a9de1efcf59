//! The body of a request, held back and kept as far as policies read it.

use peltast_engine::{is_enough, Body};

use crate::abi;

/// What is done with the body of one request.
#[derive(Default)]
pub(crate) enum RequestBody {
    /// Nobody has asked for it: it goes on as it comes.
    #[default]
    Unread,
    /// There is none.
    Absent,
    /// It is or was read. Boxed: few requests have theirs read.
    Read(Box<Held>),
}

/// What was read of a body.
pub(crate) struct Held {
    bytes: Vec<u8>,
    limit: usize,
    is_whole: bool,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// More of it is waited for.
    Reading,
    /// It waits for the decision.
    Waiting,
    /// It goes on. What was read is kept: the request is decided again while it runs.
    Passing,
}

impl RequestBody {
    /// Has so many bytes read.
    pub(crate) fn hold(limit: usize) -> Self {
        Self::Read(Box::new(Held { bytes: Vec::new(), limit, is_whole: true, stage: Stage::Reading }))
    }

    /// As policies read it; none where it was not read.
    pub(crate) fn as_body(&self) -> Option<Body<'_>> {
        match self {
            Self::Unread => None,
            Self::Absent => Some(Body::EMPTY),
            Self::Read(held) => Some(Body { bytes: &held.bytes, is_whole: held.is_whole }),
        }
    }

    /// Lets it go on as it comes.
    pub(crate) fn release(&mut self) {
        if let Self::Read(held) = self {
            held.stage = Stage::Passing;
        }
    }

    /// What is read, while more of it is waited for.
    pub(crate) fn reading(&mut self) -> Option<&mut Held> {
        match self {
            Self::Read(held) if held.stage == Stage::Reading => Some(held),
            _ => None,
        }
    }

    /// What Envoy is to do with a piece of it that comes now.
    pub(crate) fn status(&self) -> u32 {
        match self {
            Self::Read(held) if held.stage != Stage::Passing => abi::BODY_STOP_AND_WATERMARK,
            _ => abi::BODY_CONTINUE,
        }
    }
}

impl Held {
    /// Takes in a piece. Tells whether it is enough: all that is read of a body of this type is there.
    pub(crate) fn take(&mut self, piece: &[&[u8]], content_type: &[u8], is_last: bool) -> bool {
        for &bytes in piece {
            let room = self.limit - self.bytes.len();
            self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
            self.is_whole &= bytes.len() <= room;
        }
        let enough = is_last || !self.is_whole || is_enough(content_type, &self.bytes);
        if enough {
            self.stage = Stage::Waiting;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is kept of `pieces`, the last of which ends the body, whether that is all of it, and after how many
    /// pieces it was enough.
    fn held(limit: usize, content_type: &str, pieces: &[&[u8]]) -> (Vec<u8>, bool, usize) {
        let mut body = RequestBody::hold(limit);
        let mut taken = 0;
        while let Some(held) = body.reading() {
            let is_last = taken + 1 == pieces.len();
            held.take(&[pieces[taken]], content_type.as_bytes(), is_last);
            taken += 1;
        }
        assert_eq!(body.status(), abi::BODY_STOP_AND_WATERMARK, "the decision is not known yet");
        let read = body.as_body().map(|body| (body.bytes.to_vec(), body.is_whole)).expect("a body");
        body.release();
        assert_eq!(body.status(), abi::BODY_CONTINUE);
        (read.0, read.1, taken)
    }

    #[test]
    fn a_body_is_kept_up_to_the_limit() {
        type Case<'a> = (usize, &'a str, &'a [&'a [u8]], (&'a [u8], bool, usize));
        let table: &[Case<'_>] = &[
            (4, "", &[b"ab", b"cd"], (b"abcd", true, 2)),
            (4, "", &[b"ab", b"cde", b"f"], (b"abcd", false, 2)),
            (3, "", &[b"abcd", b""], (b"abc", false, 1)),
            (3, "", &[b""], (b"", true, 1)),
            (9, "application/grpc", &[b"\0\0\0\0\x02", b"ab", b"later"], (b"\0\0\0\0\x02ab", true, 2)),
        ];
        for (limit, content_type, pieces, wanted) in table {
            let (bytes, is_whole, taken) = held(*limit, content_type, pieces);
            assert_eq!((&bytes[..], is_whole, taken), *wanted, "{limit} {pieces:?}");
        }
    }

    #[test]
    fn what_nobody_reads_goes_on() {
        assert_eq!(RequestBody::default().status(), abi::BODY_CONTINUE);
        assert!(RequestBody::default().as_body().is_none());
        assert!(RequestBody::Absent.as_body().is_some_and(|body| body.is_whole && body.bytes.is_empty()));
    }
}
