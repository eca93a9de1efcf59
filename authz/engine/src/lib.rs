//! The one engine of Peltast.
//!
//! A [`Program`] is what the policies that apply to one workload compile to. It is loaded from the canonical
//! document that the control plane writes ([`document`]), never changes, and is decided by a [`Decider`], which
//! holds what one worker thread remembers: verified tokens, cached decisions, Rego evaluators.
//!
//! The crate is mounted twice: in Envoy (`proxy/filter`) and in Python (the `python` feature), so that a test, an
//! explanation and the data path cannot disagree. It does no I/O but for [`spool`], which writes audit records,
//! and [`counters`].

pub mod attribute;
mod cache;
pub mod check_request;
pub mod counters;
pub mod decide;
pub mod decision;
pub mod document;
pub mod head;
mod index;
mod mapped;
mod notes;
pub mod path;
mod pattern;
pub mod program;
#[cfg(feature = "python")]
mod python;
mod query_parameters;
pub mod quota;
pub mod ratchet;
pub mod record;
pub mod recording;
mod rego;
pub mod request;
mod segment;
mod sha256;
pub mod shadow;
pub mod spool;
pub mod start;
pub mod stored;
mod strict_json;
mod template;
#[cfg(test)]
mod testing;
pub mod token;
pub mod tree;
pub mod usage;

pub use attribute::Attribute;
pub use decide::{Answer, Decider, Question, Verdict};
pub use decision::{Decision, Effect, HeaderOperations, Lifetime, Metadata, Reason, Source};
pub use notes::{Notes, MAX_NOTE_BYTES};
pub use program::{LoadError, Program};
pub use query_parameters::QueryOperations;
pub use rego::{data_read, is_enough, QueryError, RegoError, RegoQuery};
pub use request::{Body, Connection, EditRequest, HeaderList, Headers, Http, Request, Told};
pub use shadow::Shadow;
pub use token::keys::KeySets;
pub use token::revocations::Revocations;
pub use token::{Token, Trust};

/// SHA-256 of the bytes that something was loaded from: a program, key sets.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Hashes `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest.as_ref());
        Self(hash)
    }

    /// Reads what [`Hash::hex`] wrote.
    pub fn parse(hex: &str) -> Option<Self> {
        Some(Self(data_encoding::HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()?))
    }

    /// The hash in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.hex())
    }
}
