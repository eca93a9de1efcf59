//! What Envoy calls. Each function turns handles into values, calls one method, and lets no panic out: unwinding into
//! Envoy would end the process.

use std::ffi::{c_char, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::abi::{self, Buffer, Handle, Header};
use crate::access_log::Logger;
use crate::config::FilterConfig;
use crate::envoy::{warn, LogEntry, Stream};
use crate::stream::StreamState;

/// Our half of a stream.
enum Filter {
    Deciding(StreamState),
    Passive,
}

/// Runs `hook`; after a panic gives what `rescue` gives.
fn guarded<R>(hook: impl FnOnce() -> R, rescue: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(hook)).unwrap_or_else(|_| rescue())
}

/// Runs `hook` with the stream's state, if it decides. A panic is told in Envoy's log; `denies` says whether the
/// stream waits for this hook, so that it must be answered all the same.
///
/// # Safety
/// The handles must be those of the hook at hand.
unsafe fn with_state(stream: Handle, filter: Handle, denies: bool, hook: impl FnOnce(&mut StreamState, Stream)) {
    // SAFETY: made by `filter_new`, and Envoy calls one hook of a stream at a time.
    let Filter::Deciding(state) = (unsafe { &mut *filter.cast::<Filter>() }) else { return };
    // SAFETY: Envoy's own handle.
    let stream = unsafe { Stream::new(stream) };
    if catch_unwind(AssertUnwindSafe(|| hook(state, stream))).is_err() {
        warn("peltast: a hook of the module panicked");
        if denies {
            deny_after_panic(state, stream);
        }
    }
}

fn deny_after_panic(state: &mut StreamState, stream: Stream) -> u32 {
    guarded(
        || state.on_panic(stream),
        || {
            // Not even a record could be written; still nothing goes on.
            let mut stream = stream;
            stream.respond(500, &[], "", "internal_error");
            abi::HEADERS_STOP
        },
    )
}

#[no_mangle]
extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    c"v0.2.0".as_ptr()
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    _config: Handle,
    name: Buffer,
    config: Buffer,
) -> *const c_void {
    // SAFETY: Envoy's bytes, during this call.
    let (name, config) = unsafe { (name.bytes(), config.bytes()) };
    match guarded(|| FilterConfig::load(name, config), || Err("the module panicked".to_owned())) {
        Ok(config) => Box::into_raw(Box::new(config)).cast(),
        Err(error) => {
            warn(&format!("peltast: configuration refused: {error}"));
            std::ptr::null()
        }
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(config: *mut c_void) {
    // SAFETY: made by `config_new`, destroyed once.
    drop(unsafe { Box::from_raw(config.cast::<FilterConfig>()) });
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_new(config: *const c_void, _stream: Handle) -> *mut c_void {
    // SAFETY: made by `config_new`, and alive as long as its filters are made.
    let filter = match unsafe { &*config.cast::<FilterConfig>() } {
        FilterConfig::Program(program) => Filter::Deciding(StreamState::new(program.clone())),
        FilterConfig::Keys => Filter::Passive,
    };
    Box::into_raw(Box::new(filter)).cast()
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_destroy(filter: *mut c_void) {
    // SAFETY: made by `filter_new`, destroyed once.
    drop(unsafe { Box::from_raw(filter.cast::<Filter>()) });
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    stream: Handle,
    filter: Handle,
    _end_of_stream: bool,
) -> u32 {
    // SAFETY: made by `filter_new`; Envoy's own handle.
    let (filter, stream) = unsafe { (&mut *filter.cast::<Filter>(), Stream::new(stream)) };
    let Filter::Deciding(state) = filter else { return abi::HEADERS_CONTINUE };
    if let Ok(status) = catch_unwind(AssertUnwindSafe(|| state.on_request_headers(stream))) {
        return status;
    }
    deny_after_panic(state, stream)
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    stream: Handle,
    filter: Handle,
    _end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy's handles.
    unsafe { with_state(stream, filter, false, StreamState::on_response_headers) };
    abi::HEADERS_CONTINUE
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(stream: Handle, filter: Handle) {
    // SAFETY: Envoy's handles.
    unsafe { with_state(stream, filter, false, |state, _| state.on_complete()) };
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(stream: Handle, filter: Handle, _event: u64) {
    // SAFETY: Envoy's handles.
    unsafe { with_state(stream, filter, true, StreamState::on_scheduled) };
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_http_callout_done(
    stream: Handle,
    filter: Handle,
    _callout: u64,
    result: u32,
    headers: *const Header,
    headers_count: usize,
    body: *const Buffer,
    body_count: usize,
) {
    // SAFETY: Envoy's arrays, during this call.
    let answer = unsafe { callout_answer(result, array(headers, headers_count), array(body, body_count)) };
    // SAFETY: Envoy's handles.
    unsafe { with_state(stream, filter, true, |state, stream| state.on_callout_done(stream, answer)) };
}

/// # Safety
/// `items` must hold `count` items for as long as the slice is used, or be null.
unsafe fn array<'a, T>(items: *const T, count: usize) -> &'a [T] {
    if items.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { std::slice::from_raw_parts(items, count) }
}

/// The body of a callout's response. A connection that was refused and a timeout look to a module like responses with
/// status 503 and 504.
///
/// # Safety
/// The buffers must be readable.
unsafe fn callout_answer(result: u32, headers: &[Header], body: &[Buffer]) -> Result<Vec<u8>, String> {
    // SAFETY: the caller vouches.
    let status =
        unsafe { headers.iter().find(|header| header.name.bytes() == b":status").map(|header| header.value.bytes()) };
    match (result, status) {
        // SAFETY: the caller vouches.
        (abi::CALLOUT_SUCCESS, Some(b"200")) => {
            Ok(body.iter().flat_map(|part| unsafe { part.bytes() }).copied().collect())
        }
        (abi::CALLOUT_SUCCESS, Some(status)) => {
            Err(format!("the check service answered with status {}", String::from_utf8_lossy(status)))
        }
        _ => Err(format!("the check service's answer broke off: Envoy's result {result}")),
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_access_logger_config_new(
    _config: Handle,
    name: Buffer,
    _bytes: Buffer,
) -> *const c_void {
    // SAFETY: Envoy's bytes, during this call.
    match Logger::parse(unsafe { name.bytes() }) {
        Some(logger) => Box::into_raw(Box::new(logger)).cast(),
        None => std::ptr::null(),
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_access_logger_config_destroy(config: *mut c_void) {
    // SAFETY: made by `config_new`, destroyed once.
    drop(unsafe { Box::from_raw(config.cast::<Logger>()) });
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_access_logger_new(config: *const c_void, _logger: Handle) -> *mut c_void {
    // SAFETY: made by `config_new`, and alive as long as its loggers are made.
    let logger = unsafe { *config.cast::<Logger>() };
    Box::into_raw(Box::new(logger)).cast()
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_access_logger_log(log: Handle, logger: *const c_void, _kind: u32) {
    // SAFETY: made by `logger_new`; Envoy's own handle.
    let (logger, entry) = unsafe { (*logger.cast::<Logger>(), LogEntry::new(log)) };
    guarded(|| logger.log(&entry), || warn("peltast: the access logger panicked"));
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_access_logger_destroy(logger: *mut c_void) {
    // SAFETY: made by `logger_new`, destroyed once.
    drop(unsafe { Box::from_raw(logger.cast::<Logger>()) });
}

/// Hooks that Envoy wants to find and that have nothing to do here.
macro_rules! idle {
    ($($name:ident($($argument:ty),*) -> $result:ty { $value:expr })*) => {
        $(#[no_mangle] extern "C" fn $name($(_: $argument),*) -> $result { $value })*
    };
}

idle! {
    envoy_dynamic_module_on_http_filter_request_body(Handle, Handle, bool) -> u32 { abi::BODY_CONTINUE }
    envoy_dynamic_module_on_http_filter_request_trailers(Handle, Handle) -> u32 { abi::TRAILERS_CONTINUE }
    envoy_dynamic_module_on_http_filter_response_body(Handle, Handle, bool) -> u32 { abi::BODY_CONTINUE }
    envoy_dynamic_module_on_http_filter_response_trailers(Handle, Handle) -> u32 { abi::TRAILERS_CONTINUE }
    envoy_dynamic_module_on_http_filter_http_stream_headers(Handle, Handle, u64, *const Header, usize, bool) -> () { () }
    envoy_dynamic_module_on_http_filter_http_stream_data(Handle, Handle, u64, *const Buffer, usize, bool) -> () { () }
    envoy_dynamic_module_on_http_filter_http_stream_trailers(Handle, Handle, u64, *const Header, usize) -> () { () }
    envoy_dynamic_module_on_http_filter_http_stream_complete(Handle, Handle, u64) -> () { () }
    envoy_dynamic_module_on_http_filter_http_stream_reset(Handle, Handle, u64, u32) -> () { () }
    envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(Handle, Handle) -> () { () }
    envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(Handle, Handle) -> () { () }
}
