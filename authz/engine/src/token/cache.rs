//! Tokens that were verified before, so that a signature is checked once and not once a request.

use std::collections::HashMap;
use std::sync::Arc;

use super::{verify, Token};
use crate::decision::Reason;
use crate::document::Authentication;
use crate::{Hash, KeySets};

/// Most tokens remembered by one worker; a token and its claims take some 2 KB.
const CAPACITY: usize = 2048;

/// Verified tokens by their text. What was refused is not kept: it costs an attacker nothing to send another.
#[derive(Default)]
pub(crate) struct TokenCache {
    /// What the tokens were verified by: the program, for its rules, and the keys.
    verified_by: Option<(Hash, Hash)>,
    tokens: HashMap<Box<[u8]>, Arc<Token>, ahash::RandomState>,
}

impl TokenCache {
    /// Tokens held.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The verified token of `text` at `now`.
    ///
    /// # Errors
    /// The reason for the refusal. Time is checked on every call, signatures once.
    pub(crate) fn get(
        &mut self,
        text: &[u8],
        (program, rules): (Hash, &[Authentication]),
        keys: &KeySets,
        now: i64,
    ) -> Result<Arc<Token>, Reason> {
        let verified_by = Some((program, keys.hash()));
        if self.verified_by != verified_by {
            self.tokens.clear();
            self.verified_by = verified_by;
        }
        if let Some(token) = self.tokens.get(text) {
            token.check_time(now)?;
            return Ok(Arc::clone(token));
        }
        let token = Arc::new(verify(text, rules, keys, now)?);
        if self.tokens.len() >= CAPACITY {
            self.tokens.clear();
        }
        self.tokens.insert(text.into(), Arc::clone(&token));
        Ok(token)
    }
}
