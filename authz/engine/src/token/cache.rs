//! Tokens that were verified before, so that a signature is checked once and not once a request.

use std::collections::HashMap;
use std::sync::Arc;

use super::rules::Found;
use super::{verify, Token};
use crate::decision::Reason;
use crate::{Hash, KeySets, Program};

/// Most tokens remembered by one worker; a token and its claims take some 2 KB.
const CAPACITY: usize = 2048;

/// Verified tokens by their text. What was refused is not kept: it costs an attacker nothing to send another.
#[derive(Default)]
pub(crate) struct TokenCache {
    /// What the tokens were verified by: the program, for its rules, and the keys.
    verified_by: Option<(Hash, Hash)>,
    /// By the place where they stood: another place has other rules.
    places: Vec<HashMap<Box<[u8]>, Arc<Token>, ahash::RandomState>>,
}

impl TokenCache {
    /// Tokens held.
    pub(crate) fn len(&self) -> usize {
        self.places.iter().map(HashMap::len).sum()
    }

    /// The verified token that was `found`, at `now`.
    ///
    /// # Errors
    /// The reason for the refusal. Time is checked on every call, signatures once.
    pub(crate) fn get(
        &mut self,
        found: &Found<'_>,
        program: &Program,
        keys: &KeySets,
        now: i64,
    ) -> Result<Arc<Token>, Reason> {
        let verified_by = Some((program.hash, keys.hash()));
        if self.verified_by != verified_by {
            self.places.clear();
            self.verified_by = verified_by;
        }
        if let Some(token) = self.places.get(found.place).and_then(|tokens| tokens.get(&*found.text)) {
            token.check_time(now)?;
            return Ok(Arc::clone(token));
        }
        let token = Arc::new(verify(&found.text, program.authentication.at(found.place), keys, now)?);
        self.insert(found, &token);
        Ok(token)
    }

    fn insert(&mut self, found: &Found<'_>, token: &Arc<Token>) {
        if self.len() >= CAPACITY {
            self.places.clear();
        }
        if self.places.len() <= found.place {
            self.places.resize_with(found.place + 1, HashMap::default);
        }
        self.places[found.place].insert((*found.text).into(), Arc::clone(token));
    }
}
