//! Asking the quota service: by callouts of a configuration of the filter, on Envoy's main thread. A stream's own
//! callouts end with it, and tokens are borrowed for those that come after.
//!
//! One question is under way at a time, about many keys; what is wanted meanwhile goes into the next.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use peltast_engine::quota::{Lent, Want};

use crate::abi::{self, Buffer, Handle, Header};
use crate::entry::{array, callout_answer, guarded};
use crate::envoy::{as_headers, warn};
use crate::quota::{answers, now, question, quotas};

/// The cluster by which the quota service is reached.
const CLUSTER: &str = "peltast-quota";
const HEADERS: [(&str, &str); 5] = [
    (":method", "POST"),
    (":path", "/peltast.authz.v1.Quotas/BorrowMany"),
    ("host", "control.peltast.internal"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];
/// How long an answer may take; requests wait for it.
const TIMEOUT_MS: u64 = 500;

/// A configuration of the filter, by our handle of it, and what wakes it.
struct Host {
    config: usize,
    scheduler: Handle,
}

// SAFETY: Envoy takes events from any thread.
unsafe impl Send for Host {}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: made by `begin`, deleted once.
        unsafe { abi::envoy_dynamic_module_callback_http_filter_config_scheduler_delete(self.scheduler) };
    }
}

/// A question that is under way.
struct Asked {
    config: usize,
    callout: u64,
    wants: Vec<Want>,
}

static HOSTS: Mutex<Vec<Host>> = Mutex::new(Vec::new());
static ASKED: Mutex<Option<Asked>> = Mutex::new(None);
/// Whether a configuration was woken and has not looked yet.
static RUNG: AtomicBool = AtomicBool::new(false);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a new configuration, Envoy's `host` and our `config`, ask from now on.
///
/// # Safety
/// Inside the hook that makes the configuration.
pub(crate) unsafe fn begin(host: Handle, config: *const c_void) {
    // SAFETY: the caller vouches.
    let scheduler = unsafe { abi::envoy_dynamic_module_callback_http_filter_config_scheduler_new(host) };
    lock(&HOSTS).push(Host { config: config as usize, scheduler });
}

/// A configuration goes. Envoy drops what it has asked: whoever waits for that wants it again, and another asks.
pub(crate) fn end(config: *const c_void) {
    let config = config as usize;
    lock(&HOSTS).retain(|host| host.config != config);
    RUNG.store(false, Ordering::Release);
    let asked = lock(&ASKED).take_if(|asked| asked.config == config);
    for want in asked.into_iter().flat_map(|asked| asked.wants) {
        quotas().receive(want, Lent::None(0), now());
    }
    ring();
}

/// Has the main thread ask what is wanted, if something is. From any thread.
pub(crate) fn ring() {
    if quotas().has_wants() && !RUNG.swap(true, Ordering::AcqRel) {
        match lock(&HOSTS).last() {
            // SAFETY: the scheduler lives as long as the host.
            Some(host) => unsafe {
                abi::envoy_dynamic_module_callback_http_filter_config_scheduler_commit(host.scheduler, 0);
            },
            None => RUNG.store(false, Ordering::Release),
        }
    }
}

/// Asks what is wanted, unless something is asked already.
///
/// # Safety
/// Inside a hook of the configuration, on the main thread.
unsafe fn ask(host: Handle, config: usize) {
    RUNG.store(false, Ordering::Release);
    if lock(&ASKED).is_some() {
        return;
    }
    let wants = quotas().wants(now());
    if wants.is_empty() {
        return;
    }
    // SAFETY: the caller vouches.
    match unsafe { call_out(host, &question(&wants)) } {
        Ok(callout) => *lock(&ASKED) = Some(Asked { config, callout, wants }),
        Err(number) => fail(wants, &format!("the quota service was not asked: Envoy's result {number}")),
    }
}

/// # Safety
/// As [`ask`].
unsafe fn call_out(host: Handle, body: &[u8]) -> Result<u64, u32> {
    let (headers, mut callout) = (as_headers(&HEADERS), 0);
    // SAFETY: the caller vouches; Envoy copies.
    let result = unsafe {
        abi::envoy_dynamic_module_callback_http_filter_config_http_callout(
            host,
            &mut callout,
            Buffer::of(CLUSTER.as_bytes()),
            headers.as_ptr(),
            headers.len(),
            Buffer::of(body),
            TIMEOUT_MS,
        )
    };
    if result == abi::CALLOUT_SUCCESS {
        Ok(callout)
    } else {
        Err(result)
    }
}

/// Takes what came of the question that is under way, if it is this one.
fn answered(config: usize, callout: u64, answer: Result<Vec<u8>, String>) {
    let this = |asked: &mut Asked| (asked.config, asked.callout) == (config, callout);
    let Some(Asked { wants, .. }) = lock(&ASKED).take_if(this) else { return };
    match answer.and_then(|body| answers(&body, wants.len())) {
        Ok(lent) => wants.into_iter().zip(lent).for_each(|(want, lent)| quotas().receive(want, lent, now())),
        Err(why) => fail(wants, &why),
    }
}

fn fail(wants: Vec<Want>, why: &str) {
    wants.into_iter().for_each(|want| quotas().receive(want, Lent::Failed(why.to_owned()), now()));
}

/// What a gRPC server says that has nothing else to say, beside the HTTP status.
///
/// # Safety
/// The buffers must be readable.
unsafe fn grpc_error(headers: &[Header]) -> Option<String> {
    // SAFETY: the caller vouches.
    let value = |name: &[u8]| unsafe {
        headers.iter().find(|header| header.name.bytes() == name).map(|header| header.value.bytes())
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let status = value(b"grpc-status").filter(|status| *status != b"0")?;
    let message = value(b"grpc-message").map(text).unwrap_or_default();
    Some(format!("the quota service answered with gRPC status {}: {message}", text(status)))
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_scheduled(
    host: Handle,
    config: *const c_void,
    _event: u64,
) {
    // SAFETY: Envoy's handle.
    guarded(|| unsafe { ask(host, config as usize) }, || warn("peltast: the quota service was not asked"));
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_http_callout_done(
    host: Handle,
    config: *const c_void,
    callout: u64,
    result: u32,
    headers: *const Header,
    headers_count: usize,
    body: *const Buffer,
    body_count: usize,
) {
    let hook = || {
        // SAFETY: Envoy's arrays, during this call.
        let answer = unsafe {
            let headers = array(headers, headers_count);
            match grpc_error(headers) {
                Some(error) => Err(error),
                None => callout_answer("quota", result, headers, array(body, body_count)),
            }
        };
        answered(config as usize, callout, answer);
        // SAFETY: Envoy's handle.
        unsafe { ask(host, config as usize) };
    };
    guarded(hook, || warn("peltast: an answer of the quota service was not taken"));
}
