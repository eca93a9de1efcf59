//! Envoy 1.40's dynamic module ABI (`v0.2.0`), by hand: only the symbols that are used.
//!
//! Envoy's own header is `source/extensions/dynamic_modules/abi/abi.h`. A wrong signature is undefined behaviour and
//! Envoy only warns of another version, so the supervisor refuses any other minor version, and a test compares every
//! name here with the binary.

use std::ffi::c_void;

/// A handle of Envoy's or ours.
pub(crate) type Handle = *mut c_void;

/// Bytes by address and length, passed by value. Envoy's are valid until the hook at hand returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    pub(crate) address: *const u8,
    pub(crate) length: usize,
}

impl Buffer {
    pub(crate) const EMPTY: Self = Self { address: std::ptr::null(), length: 0 };

    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self { address: bytes.as_ptr(), length: bytes.len() }
    }

    /// The bytes.
    ///
    /// # Safety
    /// The memory must be readable and unchanged for `'a`.
    pub(crate) unsafe fn bytes<'a>(self) -> &'a [u8] {
        if self.address.is_null() || self.length == 0 {
            return &[];
        }
        // SAFETY: not null, and the caller vouches for the rest.
        unsafe { std::slice::from_raw_parts(self.address, self.length) }
    }
}

/// A header by its name and value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) name: Buffer,
    pub(crate) value: Buffer,
}

/// Bytes of a request or connection: received, sent, and both again on the upstream's wire.
#[repr(C)]
#[derive(Default)]
pub(crate) struct BytesInfo {
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) upstream_wire_received: u64,
    pub(crate) upstream_wire_sent: u64,
}

/// When things happened to a request, in nanoseconds after its start; -1 where they did not.
#[repr(C)]
#[derive(Default)]
pub(crate) struct TimingInfo {
    pub(crate) start_time_unix: i64,
    pub(crate) request_complete: i64,
    pub(crate) upstream: [i64; 4],
    pub(crate) downstream: [i64; 2],
}

pub(crate) const REQUEST_HEADERS: u32 = 0;
pub(crate) const RESPONSE_HEADERS: u32 = 2;

pub(crate) const ATTRIBUTE_REQUEST_PROTOCOL: u32 = 10;
pub(crate) const ATTRIBUTE_SOURCE_ADDRESS: u32 = 24;
pub(crate) const ATTRIBUTE_DESTINATION_ADDRESS: u32 = 26;
pub(crate) const ATTRIBUTE_CONNECTION_ID: u32 = 28;
pub(crate) const ATTRIBUTE_SERVER_NAME: u32 = 30;
pub(crate) const ATTRIBUTE_TLS_VERSION: u32 = 31;

pub(crate) const HEADERS_CONTINUE: u32 = 0;
pub(crate) const HEADERS_STOP: u32 = 1;
/// Nothing of the request moves until decoding is continued; back-pressure holds its body.
pub(crate) const HEADERS_STOP_ALL_AND_WATERMARK: u32 = 4;
pub(crate) const BODY_CONTINUE: u32 = 0;
/// It is held back until decoding is continued, and no more is read from the peer where there is much.
pub(crate) const BODY_STOP_AND_WATERMARK: u32 = 2;
pub(crate) const TRAILERS_CONTINUE: u32 = 0;
pub(crate) const TRAILERS_STOP: u32 = 1;
/// The piece of the request's body that has just come.
pub(crate) const RECEIVED_REQUEST_BODY: u32 = 0;

pub(crate) const CALLOUT_SUCCESS: u32 = 0;
/// The stream is reset from this side.
pub(crate) const LOCAL_RESET: u32 = 0;

pub(crate) const CONNECTION_CONTINUE: u32 = 0;
/// Later network filters neither see the connection nor its bytes until reading is continued.
pub(crate) const CONNECTION_STOP: u32 = 1;
pub(crate) const EVENT_REMOTE_CLOSE: u32 = 0;
pub(crate) const EVENT_LOCAL_CLOSE: u32 = 1;
/// Of a TLS connection: its handshake is over.
pub(crate) const EVENT_CONNECTED: u32 = 2;
/// What waits to be written is not waited for.
pub(crate) const CLOSE_NO_FLUSH: u32 = 1;

extern "C" {
    pub(crate) fn envoy_dynamic_module_callback_log(level: u32, message: Buffer);
    pub(crate) fn envoy_dynamic_module_callback_http_get_headers_size(stream: Handle, kind: u32) -> usize;
    pub(crate) fn envoy_dynamic_module_callback_http_get_headers(
        stream: Handle,
        kind: u32,
        headers: *mut Header,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_http_set_header(
        stream: Handle,
        kind: u32,
        name: Buffer,
        value: Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_http_add_header(
        stream: Handle,
        kind: u32,
        name: Buffer,
        value: Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_http_get_body_chunks_size(stream: Handle, kind: u32) -> usize;
    pub(crate) fn envoy_dynamic_module_callback_http_get_body_chunks(
        stream: Handle,
        kind: u32,
        chunks: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_http_send_response(
        stream: Handle,
        status: u32,
        headers: *const Header,
        count: usize,
        body: Buffer,
        details: Buffer,
    );
    pub(crate) fn envoy_dynamic_module_callback_http_filter_get_attribute_string(
        stream: Handle,
        attribute: u32,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_http_filter_get_attribute_int(
        stream: Handle,
        attribute: u32,
        value: *mut u64,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_http_get_filter_state_bytes(
        stream: Handle,
        key: Buffer,
        value: *mut Buffer,
    ) -> bool;
    /// Merges a serialized `google.protobuf.Struct` into a namespace.
    pub(crate) fn envoy_dynamic_module_callback_http_set_dynamic_metadata_struct(
        stream: Handle,
        namespace: Buffer,
        serialized: Buffer,
    );
    pub(crate) fn envoy_dynamic_module_callback_http_filter_get_worker_index(stream: Handle) -> u32;
    pub(crate) fn envoy_dynamic_module_callback_http_filter_continue_decoding(stream: Handle);
    pub(crate) fn envoy_dynamic_module_callback_http_filter_http_callout(
        stream: Handle,
        callout: *mut u64,
        cluster: Buffer,
        headers: *const Header,
        count: usize,
        body: Buffer,
        timeout_ms: u64,
    ) -> u32;
    pub(crate) fn envoy_dynamic_module_callback_http_filter_reset_stream(stream: Handle, reason: u32, details: Buffer);
    pub(crate) fn envoy_dynamic_module_callback_http_filter_scheduler_new(stream: Handle) -> Handle;
    pub(crate) fn envoy_dynamic_module_callback_http_filter_scheduler_commit(scheduler: Handle, event: u64);
    pub(crate) fn envoy_dynamic_module_callback_http_filter_scheduler_delete(scheduler: Handle);

    pub(crate) fn envoy_dynamic_module_callback_http_filter_config_http_callout(
        config: Handle,
        callout: *mut u64,
        cluster: Buffer,
        headers: *const Header,
        count: usize,
        body: Buffer,
        timeout_ms: u64,
    ) -> u32;
    pub(crate) fn envoy_dynamic_module_callback_http_filter_config_scheduler_new(config: Handle) -> Handle;
    pub(crate) fn envoy_dynamic_module_callback_http_filter_config_scheduler_commit(scheduler: Handle, event: u64);
    pub(crate) fn envoy_dynamic_module_callback_http_filter_config_scheduler_delete(scheduler: Handle);

    pub(crate) fn envoy_dynamic_module_callback_network_filter_is_ssl(connection: Handle) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_network_filter_get_remote_address(
        connection: Handle,
        address: *mut Buffer,
        port: *mut u32,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_network_filter_get_local_address(
        connection: Handle,
        address: *mut Buffer,
        port: *mut u32,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_network_filter_get_requested_server_name(
        connection: Handle,
        name: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_network_get_filter_state_bytes(
        connection: Handle,
        key: Buffer,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_network_set_dynamic_metadata_string(
        connection: Handle,
        namespace: Buffer,
        key: Buffer,
        value: Buffer,
    );
    pub(crate) fn envoy_dynamic_module_callback_network_filter_get_worker_index(connection: Handle) -> u32;
    pub(crate) fn envoy_dynamic_module_callback_network_filter_continue_reading(connection: Handle);
    pub(crate) fn envoy_dynamic_module_callback_network_filter_scheduler_new(connection: Handle) -> Handle;
    pub(crate) fn envoy_dynamic_module_callback_network_filter_scheduler_commit(scheduler: Handle, event: u64);
    pub(crate) fn envoy_dynamic_module_callback_network_filter_scheduler_delete(scheduler: Handle);
    pub(crate) fn envoy_dynamic_module_callback_network_filter_close_with_details(
        connection: Handle,
        kind: u32,
        details: Buffer,
    );

    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_worker_index(log: Handle) -> u32;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_header_value(
        log: Handle,
        kind: u32,
        name: Buffer,
        value: *mut Buffer,
        index: usize,
        count: *mut usize,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_response_code(log: Handle) -> u32;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_response_code_details(
        log: Handle,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_response_flags(log: Handle) -> u64;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_bytes_info(log: Handle, bytes: *mut BytesInfo);
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_timing_info(log: Handle, timing: *mut TimingInfo);
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_attribute_string(
        log: Handle,
        attribute: u32,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_dynamic_metadata(
        log: Handle,
        namespace: Buffer,
        key: Buffer,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_connection_termination_details(
        log: Handle,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_downstream_transport_failure_reason(
        log: Handle,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_downstream_peer_serial(
        log: Handle,
        value: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_downstream_peer_uri_san_size(log: Handle) -> usize;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_downstream_peer_uri_san(
        log: Handle,
        values: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_upstream_peer_uri_san_size(log: Handle) -> usize;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_upstream_peer_uri_san(
        log: Handle,
        values: *mut Buffer,
    ) -> bool;
    pub(crate) fn envoy_dynamic_module_callback_access_logger_get_upstream_transport_failure_reason(
        log: Handle,
        value: *mut Buffer,
    ) -> bool;
}
