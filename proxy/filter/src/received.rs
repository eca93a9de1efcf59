//! A running request as it was received: what a decision did to its headers is taken back, so that it can be decided
//! again.

use std::borrow::Cow;

use peltast_engine::Headers;

use crate::envoy::Stream;

/// The headers that a decision changed, as they were before.
#[derive(Default)]
pub(crate) struct Changed(Vec<(Box<str>, Before)>);

type Before = Option<Box<[u8]>>;

impl Changed {
    /// Sets a request header, or with an empty value removes it, and keeps what was there first.
    pub(crate) fn set(&mut self, stream: &mut Stream, name: &str, value: &[u8]) {
        let lower = name.to_ascii_lowercase();
        if self.find(&lower).is_none() {
            let before = Headers::get(stream, &lower).map(|value| Box::from(&*value));
            self.0.push((lower.into(), before));
        }
        stream.set_request_header(name, value);
    }

    fn find(&self, name: &str) -> Option<Option<&[u8]>> {
        self.0.iter().find(|(key, _)| **key == *name).map(|(_, value)| value.as_deref())
    }
}

/// A stream's headers as they were received.
pub(crate) struct Received<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) changed: &'a Changed,
}

impl Headers for Received<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.changed.find(name).map_or_else(|| self.stream.get(name), |before| before.map(Cow::Borrowed))
    }

    fn any(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        match self.changed.find(name) {
            Some(before) => before.is_some_and(visit),
            None => self.stream.any(name, visit),
        }
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        let is_changed = |name: &[u8]| self.changed.0.iter().any(|(key, _)| key.as_bytes() == name);
        self.stream.visit(&mut |name, value| {
            if !is_changed(name) {
                visit(name, value);
            }
        });
        for (name, before) in &self.changed.0 {
            before.iter().for_each(|value| visit(name.as_bytes(), value));
        }
    }
}
