//! A running request as it was received: what a decision did to its headers is taken back, so that it can be decided
//! again.

use std::borrow::Cow;

use peltast_engine::{EditRequest, Headers};

use crate::envoy::Stream;

/// The headers that a decision changed, as they were before.
#[derive(Default)]
pub(crate) struct Changed(Vec<(Box<str>, Before)>);

/// Each of its values; a header that was not there has none.
type Before = Vec<Box<[u8]>>;

impl Changed {
    /// Sets a request header, or with an empty value removes it, and keeps what was there first.
    pub(crate) fn set(&mut self, stream: &mut Stream, name: &str, value: &[u8]) {
        self.keep(stream, name);
        stream.set_request_header(name, value);
    }

    /// Adds a value to a request header, and keeps what was there first.
    pub(crate) fn add(&mut self, stream: &mut Stream, name: &str, value: &str) {
        self.keep(stream, name);
        stream.add_request_header(name, value);
    }

    fn keep(&mut self, stream: &Stream, name: &str) {
        let lower = name.to_ascii_lowercase();
        if self.find(&lower).is_none() {
            let mut before = Vec::new();
            stream.any(&lower, &mut |value| {
                before.push(value.into());
                false
            });
            self.0.push((lower.into(), before));
        }
    }

    /// The path as it was, if it was changed.
    pub(crate) fn path(&self) -> Option<&[u8]> {
        self.find(":path")?.first().map(|path| &**path)
    }

    fn find(&self, name: &str) -> Option<&[Box<[u8]>]> {
        self.0.iter().find(|(key, _)| **key == *name).map(|(_, values)| &values[..])
    }
}

/// A stream whose headers are changed, and kept as they were.
pub(crate) struct Edited<'a> {
    pub(crate) stream: &'a mut Stream,
    pub(crate) changed: &'a mut Changed,
}

impl EditRequest for Edited<'_> {
    fn headers(&self) -> &dyn Headers {
        self.stream
    }

    fn path(&self) -> &[u8] {
        self.stream.header(":path").unwrap_or_default()
    }

    fn set(&mut self, name: &str, value: &[u8]) {
        self.changed.set(self.stream, name, value);
    }
}

/// A stream's headers as they were received.
pub(crate) struct Received<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) changed: &'a Changed,
}

impl Headers for Received<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match self.changed.find(name) {
            Some([]) => None,
            Some([value]) => Some(Cow::Borrowed(value)),
            Some(values) => Some(Cow::Owned(values.join(&b','))),
            None => self.stream.get(name),
        }
    }

    fn any(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        match self.changed.find(name) {
            Some(values) => values.iter().any(|value| visit(value)),
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
        for (name, values) in &self.changed.0 {
            values.iter().for_each(|value| visit(name.as_bytes(), value));
        }
    }
}
