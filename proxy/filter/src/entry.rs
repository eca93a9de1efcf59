//! What Envoy calls. Each function turns handles into values, calls one method, and lets no panic out: unwinding into
//! Envoy would end the process.

use std::ffi::{c_char, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};

use peltast_engine::Reason;

use crate::abi::{self, Buffer, Handle, Header};
use crate::access_log::Logger;
use crate::again;
use crate::borrow;
use crate::config::FilterConfig;
use crate::denial::deny;
use crate::envoy::{self, warn, LogEntry, Stream};
use crate::live::{Live, Owner, Validity};
use crate::stream::{Next, StreamState};

/// Our half of a stream.
enum Filter {
    Deciding(StreamState),
    Passive,
}

/// Runs `hook`; after a panic gives what `rescue` gives.
pub(crate) fn guarded<R>(hook: impl FnOnce() -> R, rescue: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(hook)).unwrap_or_else(|_| rescue())
}

/// Our half's state, if it decides.
///
/// # Safety
/// `filter` must live, and nothing else may borrow it meanwhile.
pub(crate) unsafe fn state_of<'a>(filter: Handle) -> Option<&'a mut StreamState> {
    // SAFETY: made by `filter_new`; the caller vouches for the rest.
    match unsafe { &mut *filter.cast::<Filter>() } {
        Filter::Deciding(state) => Some(state),
        Filter::Passive => None,
    }
}

/// Runs `hook` with the stream's state, if it decides. The state is borrowed for no longer than this call.
///
/// # Safety
/// The handles must be of a stream that lives, on its worker's thread, and nothing else may borrow the filter.
unsafe fn with_state<R>(
    stream: Handle,
    filter: Handle,
    hook: impl FnOnce(&mut StreamState, &mut Stream) -> R,
) -> Option<R> {
    // SAFETY: the caller vouches.
    let state = unsafe { state_of(filter) }?;
    // SAFETY: Envoy's own handle.
    let mut stream = unsafe { Stream::new(stream) };
    Some(hook(state, &mut stream))
}

/// Runs a hook that nothing waits for. A panic is told in Envoy's log.
///
/// # Safety
/// See [`with_state`].
unsafe fn observe(stream: Handle, filter: Handle, hook: impl FnOnce(&mut StreamState, &mut Stream)) {
    // SAFETY: the caller vouches.
    let run = || unsafe { with_state(stream, filter, hook) };
    guarded(run, || {
        warn("peltast: a hook of the module panicked");
        None
    });
}

/// Runs a hook that the stream waits for: after a panic it is denied, and recorded as denied if that can be. None
/// where the filter does not decide.
///
/// # Safety
/// See [`with_state`].
unsafe fn decide(
    stream: Handle,
    filter: Handle,
    hook: impl FnOnce(&mut StreamState, &mut Stream) -> Next,
) -> Option<Next> {
    // SAFETY: the caller vouches.
    let run = || unsafe { with_state(stream, filter, hook) };
    // SAFETY: as above; `run` is over by then.
    let deny = || guarded(|| unsafe { with_state(stream, filter, StreamState::on_panic) }, || Some(Next::Abort));
    let next = guarded(run, || {
        warn("peltast: a hook of the module panicked");
        deny()
    });
    if let Some(Next::Continue) = next {
        // SAFETY: as above; the state is no longer borrowed.
        guarded(|| unsafe { watch(stream, filter) }, || warn("peltast: a stream is not watched"));
    }
    next
}

/// Decides a running stream again; gives by what it may run on.
///
/// # Errors
/// Why it may not.
///
/// # Safety
/// See [`with_state`].
pub(crate) unsafe fn decide_again(stream: Handle, filter: Handle) -> Result<Validity, Reason> {
    // SAFETY: the caller vouches; one borrow after the other.
    unsafe {
        match decide(stream, filter, |state, stream| state.decide_again(stream, true)) {
            Some(Next::Reset(reason)) => Err(reason),
            _ => with_state(stream, filter, |state, _| state.validity()).ok_or(Reason::InternalError),
        }
    }
}

/// Has a stream that was let through watched.
///
/// # Safety
/// See [`with_state`].
unsafe fn watch(stream: Handle, filter: Handle) {
    // SAFETY: the caller vouches; one borrow after the other.
    unsafe {
        if let Some(validity) = with_state(stream, filter, |state, _| state.validity()) {
            again::begin(Live { owner: Owner::Stream, handle: stream, filter }, validity);
        }
    }
}

/// Does what is next for a stream that was stopped.
///
/// # Safety
/// The handle must be that of the hook at hand, and nothing may borrow its filter: other hooks run inside.
unsafe fn resume(stream: Handle, next: Option<Next>) {
    // SAFETY: Envoy's own handle.
    let stream = unsafe { Stream::new(stream) };
    match next {
        Some(Next::Continue) => stream.continue_decoding(),
        Some(next @ (Next::Deny(_) | Next::Abort)) => answer(stream, &next),
        Some(Next::Reset(reason)) => stream.reset(reason.as_str()),
        Some(Next::Wait | Next::Read) | None => {}
    }
}

fn answer(stream: Stream, next: &Next) {
    match next {
        Next::Deny(decision) => deny(stream, decision),
        _ => stream.respond(500, &[], "", "internal_error"),
    }
}

#[no_mangle]
extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    c"v0.2.0".as_ptr()
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    host: Handle,
    name: Buffer,
    config: Buffer,
) -> *const c_void {
    // SAFETY: Envoy's bytes, during this call.
    let (name, config) = unsafe { (name.bytes(), config.bytes()) };
    match guarded(|| FilterConfig::load(name, config), || Err("the module panicked".to_owned())) {
        Ok(loaded) => {
            let asks = matches!(loaded, FilterConfig::Program(_));
            let config = Box::into_raw(Box::new(loaded)).cast();
            if asks {
                // SAFETY: Envoy's handle, in this very hook.
                guarded(|| unsafe { borrow::begin(host, config) }, || warn("peltast: nothing can be borrowed"));
            }
            config
        }
        Err(error) => {
            warn(&format!("peltast: configuration refused: {error}"));
            std::ptr::null()
        }
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(config: *mut c_void) {
    let destroy = || {
        borrow::end(config);
        // SAFETY: made by `config_new`, destroyed once.
        drop(unsafe { Box::from_raw(config.cast::<FilterConfig>()) });
    };
    guarded(destroy, || {});
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_new(config: *const c_void, _stream: Handle) -> *mut c_void {
    // SAFETY: made by `config_new`, and alive as long as its filters are made.
    let config = unsafe { &*config.cast::<FilterConfig>() };
    let new = || match config {
        FilterConfig::Program(workload) => Filter::Deciding(StreamState::new(workload)),
        FilterConfig::Carrier => Filter::Passive,
    };
    // Null closes the stream.
    guarded(|| Box::into_raw(Box::new(new())).cast(), std::ptr::null_mut)
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_destroy(filter: *mut c_void) {
    // SAFETY: made by `filter_new`, destroyed once, and off the list where no hook told of the stream's end.
    let destroy = || unsafe {
        again::end(Owner::Stream, filter);
        drop(Box::from_raw(filter.cast::<Filter>()));
    };
    guarded(destroy, || {});
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    stream: Handle,
    filter: Handle,
    end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy's handles.
    match unsafe { decide(stream, filter, |state, stream| state.on_request_headers(stream, end_of_stream)) } {
        Some(Next::Read) => abi::HEADERS_STOP,
        Some(Next::Continue) | None => abi::HEADERS_CONTINUE,
        Some(Next::Wait | Next::Reset(_)) => abi::HEADERS_STOP_ALL_AND_WATERMARK,
        Some(next @ (Next::Deny(_) | Next::Abort)) => {
            // SAFETY: Envoy's own handle.
            answer(unsafe { Stream::new(stream) }, &next);
            abi::HEADERS_STOP
        }
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    stream: Handle,
    filter: Handle,
    end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy's handles.
    unsafe { read_body(stream, filter, end_of_stream) }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_trailers(stream: Handle, filter: Handle) -> u32 {
    // SAFETY: Envoy's handles.
    match unsafe { read_body(stream, filter, true) } {
        abi::BODY_CONTINUE => abi::TRAILERS_CONTINUE,
        _ => abi::TRAILERS_STOP,
    }
}

/// Decides a request whose body is waited for, if enough of it has come; tells what Envoy is to do with it.
///
/// # Safety
/// See [`with_state`].
unsafe fn read_body(stream: Handle, filter: Handle, is_last: bool) -> u32 {
    // SAFETY: the caller vouches, here and below; one borrow after the other.
    let Some(body) = (unsafe { state_of(filter) }).map(StreamState::body) else { return abi::BODY_CONTINUE };
    if body.reading().is_none() {
        return body.status();
    }
    // SAFETY: as above.
    let next = unsafe { decide(stream, filter, |state, stream| state.on_request_body(stream, is_last)) };
    if let Some(next @ (Next::Deny(_) | Next::Abort)) = &next {
        // SAFETY: Envoy's own handle; the state is no longer borrowed, and may be gone afterwards.
        answer(unsafe { Stream::new(stream) }, next);
        return abi::BODY_STOP_AND_WATERMARK;
    }
    // SAFETY: as above.
    unsafe { state_of(filter) }.map_or(abi::BODY_CONTINUE, |state| state.body().status())
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    stream: Handle,
    filter: Handle,
    _end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy's handles.
    unsafe { observe(stream, filter, StreamState::on_response_headers) };
    abi::HEADERS_CONTINUE
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_stream_complete(stream: Handle, filter: Handle) {
    // SAFETY: Envoy's handles.
    unsafe {
        observe(stream, filter, |state, _| state.on_complete());
        guarded(|| again::end(Owner::Stream, filter), || warn("peltast: a stream's end was not seen"));
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_scheduled(stream: Handle, filter: Handle, event: u64) {
    if event == envoy::LOOK_AGAIN {
        // SAFETY: a hook of this worker; nothing is borrowed.
        return guarded(|| unsafe { again::look_again() }, || warn("peltast: running requests were not decided again"));
    }
    // SAFETY: Envoy's handles.
    let next = unsafe { decide(stream, filter, StreamState::on_scheduled) };
    // SAFETY: Envoy's handle; the state is no longer borrowed.
    unsafe { resume(stream, next) };
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_http_callout_done(
    stream: Handle,
    filter: Handle,
    callout: u64,
    result: u32,
    headers: *const Header,
    headers_count: usize,
    body: *const Buffer,
    body_count: usize,
) {
    let hook = |state: &mut StreamState, stream: &mut Stream| {
        // SAFETY: Envoy's arrays, during this call.
        let answer = unsafe { callout_answer("check", result, array(headers, headers_count), array(body, body_count)) };
        state.on_callout_done(stream, callout, answer)
    };
    if envoy::is_calling_out() {
        return;
    }
    // SAFETY: Envoy's handles.
    let next = unsafe { decide(stream, filter, hook) };
    // SAFETY: Envoy's handle; the state is no longer borrowed.
    unsafe { resume(stream, next) };
}

/// # Safety
/// `items` must hold `count` items for as long as the slice is used, or be null.
pub(crate) unsafe fn array<'a, T>(items: *const T, count: usize) -> &'a [T] {
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
pub(crate) unsafe fn callout_answer(
    service: &str,
    result: u32,
    headers: &[Header],
    body: &[Buffer],
) -> Result<Vec<u8>, String> {
    // SAFETY: the caller vouches.
    let status =
        unsafe { headers.iter().find(|header| header.name.bytes() == b":status").map(|header| header.value.bytes()) };
    match (result, status) {
        (abi::CALLOUT_SUCCESS, Some(b"200")) => {
            // SAFETY: the caller vouches.
            let parts: Vec<&[u8]> = body.iter().map(|part| unsafe { part.bytes() }).collect();
            Ok(parts.concat())
        }
        (abi::CALLOUT_SUCCESS, Some(status)) => {
            Err(format!("the {service} service answered with status {}", String::from_utf8_lossy(status)))
        }
        _ => Err(format!("the {service} service's answer broke off: Envoy's result {result}")),
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_access_logger_config_new(
    _config: Handle,
    name: Buffer,
    config: Buffer,
) -> *const c_void {
    // SAFETY: Envoy's bytes, during this call.
    match guarded(|| Logger::parse(unsafe { name.bytes() }, unsafe { config.bytes() }), || None) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &str) -> Header {
        Header { name: Buffer::of(name.as_bytes()), value: Buffer::of(value.as_bytes()) }
    }

    #[test]
    fn a_panic_is_caught_and_something_else_is_given() {
        assert_eq!(guarded(|| panic!("inside"), || 7), 7);
        assert_eq!(guarded(|| 1, || 7), 1);
    }

    #[test]
    fn arrays_that_are_not_there_are_empty() {
        // SAFETY: null, or with room for what is counted.
        unsafe {
            assert!(array::<Header>(std::ptr::null(), 5).is_empty());
            assert!(array([header("a", "b")].as_ptr(), 0).is_empty());
            assert!(Buffer::EMPTY.bytes().is_empty());
            assert!(Buffer { address: std::ptr::null(), length: 9 }.bytes().is_empty());
        }
    }

    /// Envoy makes a response of a connection that was refused, and of a timeout.
    #[test]
    fn only_a_whole_answer_with_status_200_is_one() {
        let parts = [Buffer::of(b"ab"), Buffer::EMPTY, Buffer::of(b"c")];
        let (ok, unavailable) = ([header("x", "y"), header(":status", "200")], [header(":status", "503")]);
        let table = [
            ("whole", 0, &ok[..], Ok(&b"abc"[..])),
            ("unavailable", 0, &unavailable, Err("status 503")),
            ("broken off", 1, &[], Err("result 1")),
            ("too long", 2, &ok, Err("result 2")),
            ("without a status", 0, &ok[..1], Err("result 0")),
        ];
        for (what, result, headers, wanted) in table {
            // SAFETY: all of it lives here.
            let got = unsafe { callout_answer("check", result, headers, &parts) };
            match (got, wanted) {
                (Ok(body), wanted) => assert_eq!(Ok(&body[..]), wanted, "{what}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{what}: {error}"),
                (Err(error), Ok(_)) => panic!("{what}: {error}"),
            }
        }
    }
}
