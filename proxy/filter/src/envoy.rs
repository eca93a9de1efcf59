//! Envoy's side of a stream, a log entry and a scheduler, as safe values.

use std::borrow::Cow;
use std::cell::{Cell, OnceCell};

use peltast_engine::{request, Headers};
use prost::Message;
use prost_types::Struct;

use crate::abi::{self, Buffer, BytesInfo, Handle, Header, TimingInfo};
use crate::live::Owner;

/// Writes a line to Envoy's log at level warning.
pub(crate) fn warn(message: &str) {
    const WARN: u32 = 3;
    // SAFETY: Envoy copies the message during the call.
    unsafe { abi::envoy_dynamic_module_callback_log(WARN, Buffer::of(message.as_bytes())) };
}

pub(crate) fn found(get: impl FnOnce(*mut Buffer) -> bool) -> Option<Buffer> {
    let mut value = Buffer::EMPTY;
    get(&mut value).then_some(value)
}

/// A stream, inside one of its hooks. What it returns by reference is Envoy's, and valid until headers are changed:
/// so what changes them takes `&mut self`, and a stream is not copied.
pub(crate) struct Stream {
    handle: Handle,
    /// The request's headers, once one was asked for: each call to Envoy costs more than a look through all of them.
    headers: OnceCell<RequestHeaders>,
}

/// The headers that every request is asked for, most of them more than once.
const COMMON: [&str; 6] = [":method", ":authority", ":path", ":scheme", "x-request-id", "traceparent"];

/// All headers of a request, with pseudo-headers, in Envoy's order.
struct RequestHeaders {
    all: Vec<Header>,
    /// The first value of each of [`COMMON`].
    common: [Option<Buffer>; COMMON.len()],
}

impl RequestHeaders {
    fn of(all: Vec<Header>) -> Self {
        let mut common = [None; COMMON.len()];
        for header in &all {
            // SAFETY: Envoy's bytes, which were read just now.
            if let Some(place) = place(unsafe { header.name.bytes() }) {
                common[place].get_or_insert(header.value);
            }
        }
        Self { all, common }
    }
}

/// Where `name` is among [`COMMON`]. Inlined: of a name that is written in the code it costs nothing.
#[inline(always)]
fn place(name: &[u8]) -> Option<usize> {
    COMMON.iter().position(|common| common.as_bytes() == name)
}

impl Stream {
    /// # Safety
    /// `handle` must be the stream that Envoy gave to the hook at hand.
    pub(crate) unsafe fn new(handle: Handle) -> Self {
        Self { handle, headers: OnceCell::new() }
    }

    /// The first value of a request header.
    #[inline(always)] // see `place`
    pub(crate) fn header(&self, name: &str) -> Option<&[u8]> {
        match place(name.as_bytes()) {
            // SAFETY: the bytes live until a setter, which takes `&mut self`.
            Some(place) => self.read().common[place].map(|value| unsafe { value.bytes() }),
            None => self.headers().find(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value),
        }
    }

    /// All request headers, with pseudo-headers, in Envoy's order.
    fn headers(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        // SAFETY: the bytes live until a setter, which takes `&mut self`.
        self.read().all.iter().map(|header| unsafe { (header.name.bytes(), header.value.bytes()) })
    }

    #[inline]
    fn read(&self) -> &RequestHeaders {
        self.headers.get_or_init(|| RequestHeaders::of(self.read_headers()))
    }

    fn read_headers(&self) -> Vec<Header> {
        // SAFETY: inside a hook of this stream; the list has room for as many headers as there are.
        unsafe {
            let size = abi::envoy_dynamic_module_callback_http_get_headers_size(self.handle, abi::REQUEST_HEADERS);
            let mut headers = vec![Header { name: Buffer::EMPTY, value: Buffer::EMPTY }; size];
            let list = headers.as_mut_ptr();
            if !abi::envoy_dynamic_module_callback_http_get_headers(self.handle, abi::REQUEST_HEADERS, list) {
                headers.clear();
            }
            headers
        }
    }

    /// The piece of the body that the hook at hand is about.
    pub(crate) fn received_body(&self) -> Vec<&[u8]> {
        let kind = abi::RECEIVED_REQUEST_BODY;
        // SAFETY: as in `headers`; the list has room for as many chunks as there are.
        unsafe {
            let size = abi::envoy_dynamic_module_callback_http_get_body_chunks_size(self.handle, kind);
            let mut chunks = vec![Buffer::EMPTY; size];
            if !abi::envoy_dynamic_module_callback_http_get_body_chunks(self.handle, kind, chunks.as_mut_ptr()) {
                chunks.clear();
            }
            chunks.into_iter().map(|chunk| chunk.bytes()).collect()
        }
    }

    /// A text attribute.
    pub(crate) fn attribute(&self, attribute: u32) -> Option<&[u8]> {
        // SAFETY: as in `headers`.
        unsafe {
            found(|value| {
                abi::envoy_dynamic_module_callback_http_filter_get_attribute_string(self.handle, attribute, value)
            })
            .map(|value| value.bytes())
        }
    }

    /// Envoy's number for the connection; no other connection of the process ever has it.
    pub(crate) fn connection_number(&self) -> Option<u64> {
        let (attribute, mut number) = (abi::ATTRIBUTE_CONNECTION_ID, 0);
        // SAFETY: inside a hook of this stream; Envoy fills the number.
        let found = unsafe {
            abi::envoy_dynamic_module_callback_http_filter_get_attribute_int(self.handle, attribute, &mut number)
        };
        found.then_some(number)
    }

    /// An object of the connection's filter state.
    pub(crate) fn filter_state(&self, key: &str) -> Option<&[u8]> {
        let key = Buffer::of(key.as_bytes());
        // SAFETY: as in `headers`; a connection's filter state outlives its streams.
        unsafe {
            found(|value| abi::envoy_dynamic_module_callback_http_get_filter_state_bytes(self.handle, key, value))
                .map(|value| value.bytes())
        }
    }

    pub(crate) fn worker_index(&self) -> u32 {
        // SAFETY: inside a hook of this stream.
        unsafe { abi::envoy_dynamic_module_callback_http_filter_get_worker_index(self.handle) }
    }

    /// Replaces a request header; an empty value removes it.
    pub(crate) fn set_request_header(&mut self, name: &str, value: &[u8]) {
        let value = if value.is_empty() { Buffer::EMPTY } else { Buffer::of(value) };
        let (kind, name) = (abi::REQUEST_HEADERS, Buffer::of(name.as_bytes()));
        self.headers.take();
        // SAFETY: inside a hook of this stream; Envoy copies.
        unsafe { abi::envoy_dynamic_module_callback_http_set_header(self.handle, kind, name, value) };
    }

    /// Adds a value to a request header.
    pub(crate) fn add_request_header(&mut self, name: &str, value: &str) {
        self.headers.take();
        self.add_header(abi::REQUEST_HEADERS, name, value);
    }

    pub(crate) fn add_response_header(&mut self, name: &str, value: &str) {
        self.add_header(abi::RESPONSE_HEADERS, name, value);
    }

    fn add_header(&self, kind: u32, name: &str, value: &str) {
        let (name, value) = (Buffer::of(name.as_bytes()), Buffer::of(value.as_bytes()));
        // SAFETY: inside a hook of this stream; Envoy copies.
        unsafe { abi::envoy_dynamic_module_callback_http_add_header(self.handle, kind, name, value) };
    }

    /// Sets members of a namespace of the stream's dynamic metadata, which access logs and other filters read.
    pub(crate) fn set_metadata(&self, namespace: &str, metadata: &Struct) {
        let (namespace, serialized) = (Buffer::of(namespace.as_bytes()), metadata.encode_to_vec());
        let serialized = Buffer::of(&serialized);
        // SAFETY: inside a hook of this stream; Envoy copies.
        unsafe {
            abi::envoy_dynamic_module_callback_http_set_dynamic_metadata_struct(self.handle, namespace, serialized);
        }
    }

    /// Answers the request here. From any hook but `request_headers`, the stream's other hooks run inside this call:
    /// nothing of ours may be borrowed, and nothing is left to do for the stream afterwards.
    pub(crate) fn respond(self, status: u16, headers: &[(&str, &str)], body: &str, details: &str) {
        let headers = as_headers(headers);
        let (body, details) = (Buffer::of(body.as_bytes()), Buffer::of(details.as_bytes()));
        // SAFETY: inside a hook of this stream; Envoy copies.
        unsafe {
            abi::envoy_dynamic_module_callback_http_send_response(
                self.handle,
                u32::from(status),
                headers.as_ptr(),
                headers.len(),
                body,
                details,
            );
        }
    }

    /// Lets a stopped request go on; later filters, and hooks of ours, run inside this call, as in [`Self::respond`].
    pub(crate) fn continue_decoding(self) {
        // SAFETY: inside a hook of this stream.
        unsafe { abi::envoy_dynamic_module_callback_http_filter_continue_decoding(self.handle) };
    }

    /// Sends a request of our own; gives its number, with which the answer comes to `http_callout_done`.
    ///
    /// # Errors
    /// Envoy's number for why it could not be sent. Envoy may tell of that inside this call, too: see
    /// [`is_calling_out`].
    pub(crate) fn call_out(
        &self,
        cluster: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout_ms: u32,
    ) -> Result<u64, u32> {
        let headers = as_headers(headers);
        let mut id = 0;
        CALLING_OUT.set(true);
        // SAFETY: inside a hook of this stream; Envoy copies.
        let result = unsafe {
            abi::envoy_dynamic_module_callback_http_filter_http_callout(
                self.handle,
                &mut id,
                Buffer::of(cluster.as_bytes()),
                headers.as_ptr(),
                headers.len(),
                Buffer::of(body),
                u64::from(timeout_ms),
            )
        };
        CALLING_OUT.set(false);
        if result == abi::CALLOUT_SUCCESS {
            Ok(id)
        } else {
            Err(result)
        }
    }

    /// Ends a stream that was let through. Its last hooks run inside this call, as in [`Self::respond`].
    pub(crate) fn reset(self, details: &str) {
        let details = Buffer::of(details.as_bytes());
        // SAFETY: a stream of the worker that runs this hook; Envoy copies.
        unsafe { abi::envoy_dynamic_module_callback_http_filter_reset_stream(self.handle, abi::LOCAL_RESET, details) };
    }

    pub(crate) fn scheduler(&self) -> Scheduler {
        Scheduler::of(Owner::Stream, self.handle)
    }
}

thread_local! {
    static CALLING_OUT: Cell<bool> = const { Cell::new(false) };
}

/// Whether [`Stream::call_out`] is on the stack: what Envoy answers by itself meanwhile, it tells by its result.
pub(crate) fn is_calling_out() -> bool {
    CALLING_OUT.get()
}

pub(crate) fn as_headers(headers: &[(&str, &str)]) -> Vec<Header> {
    let header = |(name, value): &(&str, &str)| Header {
        name: Buffer::of(name.as_bytes()),
        value: Buffer::of(value.as_bytes()),
    };
    headers.iter().map(header).collect()
}

impl Headers for Stream {
    fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let mut values = self.headers().filter(|(key, _)| *key == name.as_bytes()).map(|(_, value)| value);
        let first = values.next()?;
        let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
        let all: Vec<&[u8]> = [first, second].into_iter().chain(values).collect();
        Some(Cow::Owned(all.join(request::separator(name))))
    }

    fn any(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.headers().any(|(key, value)| key == name.as_bytes() && visit(value))
    }

    fn visit(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.headers().for_each(|(name, value)| visit(name, value));
    }
}

/// What a stream's worker is woken for.
pub(crate) const ANSWERED: u64 = 0;
/// See [`ANSWERED`].
pub(crate) const LOOK_AGAIN: u64 = 1;

/// Wakes the worker of a stream or connection from anywhere, also when that is gone: then nothing happens.
pub(crate) struct Scheduler {
    owner: Owner,
    handle: Handle,
}

// SAFETY: Envoy takes events from any thread.
unsafe impl Send for Scheduler {}

impl Scheduler {
    /// Of a stream or connection that lives, on the thread of its worker.
    pub(crate) fn of(owner: Owner, handle: Handle) -> Self {
        // SAFETY: it lives; Envoy's object is ours until drop.
        let handle = unsafe {
            match owner {
                Owner::Stream => abi::envoy_dynamic_module_callback_http_filter_scheduler_new(handle),
                Owner::Connection => abi::envoy_dynamic_module_callback_network_filter_scheduler_new(handle),
            }
        };
        Self { owner, handle }
    }

    /// Tells the stream that the answer it waits for has come.
    pub(crate) fn wake(&self) {
        self.commit(ANSWERED);
    }

    /// Has the worker look whether what it let through is still allowed.
    pub(crate) fn look_again(&self) {
        self.commit(LOOK_AGAIN);
    }

    fn commit(&self, event: u64) {
        // SAFETY: the scheduler lives until drop; Envoy drops the event where its owner is gone.
        unsafe {
            match self.owner {
                Owner::Stream => abi::envoy_dynamic_module_callback_http_filter_scheduler_commit(self.handle, event),
                Owner::Connection => {
                    abi::envoy_dynamic_module_callback_network_filter_scheduler_commit(self.handle, event);
                }
            }
        }
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // SAFETY: made by `of`, deleted once.
        unsafe {
            match self.owner {
                Owner::Stream => abi::envoy_dynamic_module_callback_http_filter_scheduler_delete(self.handle),
                Owner::Connection => abi::envoy_dynamic_module_callback_network_filter_scheduler_delete(self.handle),
            }
        }
    }
}

/// A log entry, inside the access logger's hook.
pub(crate) struct LogEntry(Handle);

impl LogEntry {
    /// # Safety
    /// `handle` must be the entry that Envoy gave to the hook at hand.
    pub(crate) unsafe fn new(handle: Handle) -> Self {
        Self(handle)
    }

    pub(crate) fn worker_index(&self) -> u32 {
        // SAFETY: inside the hook of this entry, as everywhere below.
        unsafe { abi::envoy_dynamic_module_callback_access_logger_get_worker_index(self.0) }
    }

    pub(crate) fn request_header(&self, name: &str) -> Option<&[u8]> {
        let (kind, name) = (abi::REQUEST_HEADERS, Buffer::of(name.as_bytes()));
        let mut count = 0;
        self.text(|log, value| {
            // SAFETY: see `worker_index`.
            unsafe {
                abi::envoy_dynamic_module_callback_access_logger_get_header_value(log, kind, name, value, 0, &mut count)
            }
        })
    }

    pub(crate) fn status(&self) -> u32 {
        // SAFETY: see `worker_index`.
        unsafe { abi::envoy_dynamic_module_callback_access_logger_get_response_code(self.0) }
    }

    pub(crate) fn flags(&self) -> u64 {
        // SAFETY: see `worker_index`.
        unsafe { abi::envoy_dynamic_module_callback_access_logger_get_response_flags(self.0) }
    }

    pub(crate) fn details(&self) -> Option<&[u8]> {
        // SAFETY: see `worker_index`.
        self.text(|log, value| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_response_code_details(log, value)
        })
    }

    pub(crate) fn bytes(&self) -> BytesInfo {
        let mut bytes = BytesInfo::default();
        // SAFETY: see `worker_index`; Envoy fills the structure.
        unsafe { abi::envoy_dynamic_module_callback_access_logger_get_bytes_info(self.0, &mut bytes) };
        bytes
    }

    /// Nanoseconds from the first to the last byte of the request and its response.
    pub(crate) fn duration_ns(&self) -> u64 {
        let mut timing = TimingInfo::default();
        // SAFETY: see `worker_index`; Envoy fills the structure.
        unsafe { abi::envoy_dynamic_module_callback_access_logger_get_timing_info(self.0, &mut timing) };
        timing.request_complete.max(0) as u64
    }

    pub(crate) fn attribute(&self, attribute: u32) -> Option<&[u8]> {
        // SAFETY: see `worker_index`.
        self.text(|log, value| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_attribute_string(log, attribute, value)
        })
    }

    /// Text of the connection's dynamic metadata.
    pub(crate) fn metadata(&self, namespace: &str, key: &str) -> Option<&[u8]> {
        let (namespace, key) = (Buffer::of(namespace.as_bytes()), Buffer::of(key.as_bytes()));
        // SAFETY: see `worker_index`.
        self.text(|log, value| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_dynamic_metadata(log, namespace, key, value)
        })
    }

    /// Why the connection was closed, where a filter said so.
    pub(crate) fn termination_details(&self) -> Option<&[u8]> {
        // SAFETY: see `worker_index`.
        self.text(|log, value| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_connection_termination_details(log, value)
        })
    }

    /// Whether the connection is, or was to become, TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.attribute(abi::ATTRIBUTE_TLS_VERSION).is_some()
    }

    /// Why the connection was refused before any request; none where it was not.
    ///
    /// Envoy's TLS inspector leaves a failure on plaintext, too, which has a filter chain of its own; and none on a
    /// connection that ended before it could tell.
    pub(crate) fn handshake_failure(&self) -> Option<&[u8]> {
        // SAFETY: see `worker_index`.
        let failure = self.text(|log, value| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_downstream_transport_failure_reason(log, value)
        });
        match (self.is_tls(), failure.filter(|failure| !failure.is_empty())) {
            (true, failure) => failure,
            (false, Some(_)) => None,
            (false, None) => Some(b"it ended before TLS could be told from plaintext"),
        }
    }

    /// Why the connection to the upstream failed; none where it did not.
    pub(crate) fn upstream_failure(&self) -> Option<&[u8]> {
        // SAFETY: see `worker_index`.
        let reason = self.text(|log, value| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_upstream_transport_failure_reason(log, value)
        });
        reason.filter(|reason| !reason.is_empty())
    }

    pub(crate) fn peer_serial(&self) -> Option<&[u8]> {
        // SAFETY: see `worker_index`.
        self.text(|log, value| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_downstream_peer_serial(log, value)
        })
    }

    /// The URI SANs of whoever connected, with commas between them.
    pub(crate) fn peer_uri_sans(&self) -> Option<Vec<u8>> {
        // SAFETY: see `worker_index`.
        let size = unsafe { abi::envoy_dynamic_module_callback_access_logger_get_downstream_peer_uri_san_size(self.0) };
        // SAFETY: see `worker_index`; the list has room for as many names as there are.
        self.names(size, |log, values| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_downstream_peer_uri_san(log, values)
        })
    }

    /// The URI SANs of whoever was connected to, with commas between them.
    pub(crate) fn upstream_uri_sans(&self) -> Option<Vec<u8>> {
        // SAFETY: see `worker_index`.
        let size = unsafe { abi::envoy_dynamic_module_callback_access_logger_get_upstream_peer_uri_san_size(self.0) };
        // SAFETY: see `worker_index`; the list has room for as many names as there are.
        self.names(size, |log, values| unsafe {
            abi::envoy_dynamic_module_callback_access_logger_get_upstream_peer_uri_san(log, values)
        })
    }

    fn text(&self, get: impl FnOnce(Handle, *mut Buffer) -> bool) -> Option<&[u8]> {
        // SAFETY: the bytes are Envoy's until the hook returns.
        found(|value| get(self.0, value)).map(|value| unsafe { value.bytes() })
    }

    fn names(&self, size: usize, get: impl FnOnce(Handle, *mut Buffer) -> bool) -> Option<Vec<u8>> {
        let mut names = vec![Buffer::EMPTY; size];
        if size == 0 || !get(self.0, names.as_mut_ptr()) {
            return None;
        }
        // SAFETY: the bytes are Envoy's until the hook returns.
        let names: Vec<&[u8]> = names.into_iter().map(|name| unsafe { name.bytes() }).collect();
        Some(names.join(&b','))
    }
}
