//! What Envoy calls of a network filter. As in [`crate::entry`]: each function turns handles into values, calls one
//! method, and lets no panic out.

use std::ffi::c_void;

use peltast_engine::Reason;

use crate::abi::{self, Buffer, Handle};
use crate::again;
use crate::config::{FilterConfig, Workload};
use crate::connection::{ConnectionState, Next, Side};
use crate::entry::guarded;
use crate::envoy::warn;
use crate::live::{Live, Owner, Validity};
use crate::network::Connection;
use crate::worker::{self, Worker};

/// Loads the filter's configuration: a program. Key sets are no network filter's.
fn load(name: &[u8], config: &[u8]) -> Result<&'static Workload, String> {
    let unknown = || Err(format!("a network filter is called {:?}; program is known", String::from_utf8_lossy(name)));
    if name != b"program" {
        return unknown();
    }
    match FilterConfig::load(name, config)? {
        FilterConfig::Program(workload) => Ok(workload),
        FilterConfig::Carrier => unknown(),
    }
}

type Hook = fn(&mut ConnectionState, &Connection) -> Next;

/// Runs a hook that the connection waits for: after a panic it is closed, and recorded as denied if that can be.
///
/// # Safety
/// The handles must be those of the hook at hand, and nothing else may borrow the filter.
unsafe fn decide(connection: Handle, filter: *mut c_void, hook: Hook) -> Next {
    // SAFETY: Envoy's own handle; the state is made by `filter_new`, and borrowed for no longer than the call.
    let run = |hook: Hook| unsafe { hook(&mut *filter.cast::<ConnectionState>(), &Connection::new(connection)) };
    guarded(
        || run(hook),
        || {
            warn("peltast: a hook of the module panicked");
            guarded(|| run(ConnectionState::on_panic), || Next::Close(Reason::InternalError))
        },
    )
}

/// Decides a running connection again; gives by what it may run on.
///
/// # Errors
/// Why it may not.
///
/// # Safety
/// As [`decide`].
pub(crate) unsafe fn decide_again(connection: Handle, filter: Handle) -> Result<Validity, Reason> {
    // SAFETY: the caller vouches.
    let run = || unsafe { (*filter.cast::<ConnectionState>()).decide_again(&Connection::new(connection)) };
    guarded(run, || {
        warn("peltast: a hook of the module panicked");
        worker::with(Worker::recover);
        Err(Reason::InternalError)
    })
}

/// Has a connection that was let through watched.
///
/// # Safety
/// As [`decide`].
unsafe fn watch(connection: Handle, filter: Handle) {
    // SAFETY: the caller vouches; one borrow after the other.
    let watch = || unsafe {
        let validity = (*filter.cast::<ConnectionState>()).validity(&Connection::new(connection));
        again::begin(Live { owner: Owner::Connection, handle: connection, filter }, validity);
    };
    guarded(watch, || warn("peltast: a connection is not watched"));
}

/// Has a connection watched no more, if it was.
///
/// # Safety
/// As [`decide`].
unsafe fn unwatch(filter: Handle) {
    // SAFETY: the caller vouches.
    guarded(|| unsafe { again::end(Owner::Connection, filter) }, || warn("peltast: a connection's end was not seen"));
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_config_new(
    _config: Handle,
    name: Buffer,
    config: Buffer,
) -> *const c_void {
    // SAFETY: Envoy's bytes, during this call.
    let (name, config) = unsafe { (name.bytes(), config.bytes()) };
    match guarded(|| load(name, config), || Err("the module panicked".to_owned())) {
        Ok(workload) => std::ptr::from_ref(workload).cast(),
        Err(error) => {
            warn(&format!("peltast: configuration refused: {error}"));
            std::ptr::null()
        }
    }
}

#[no_mangle]
extern "C" fn envoy_dynamic_module_on_network_filter_config_destroy(_config: *mut c_void) {}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_new(
    config: *const c_void,
    _connection: Handle,
) -> *mut c_void {
    // SAFETY: made by `config_new`, of what lives for ever.
    let workload = unsafe { &*config.cast::<Workload>() };
    // Null closes the connection.
    guarded(|| Box::into_raw(Box::new(ConnectionState::new(workload))).cast(), std::ptr::null_mut)
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_destroy(filter: *mut c_void) {
    // SAFETY: made by `filter_new`, destroyed once, and off the list where no hook told of the connection's end.
    unsafe {
        unwatch(filter);
        guarded(|| drop(Box::from_raw(filter.cast::<ConnectionState>())), || {});
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_new_connection(
    connection: Handle,
    filter: *mut c_void,
) -> u32 {
    // SAFETY: Envoy's handles.
    match unsafe { decide(connection, filter, ConnectionState::on_new_connection) } {
        Next::Continue => {
            // SAFETY: Envoy's handles; the state is no longer borrowed.
            unsafe { watch(connection, filter) };
            abi::CONNECTION_CONTINUE
        }
        Next::Wait => abi::CONNECTION_STOP,
        Next::Close(reason) => {
            // SAFETY: Envoy's handle; the state is no longer borrowed.
            unsafe { Connection::new(connection) }.close(reason.as_str());
            abi::CONNECTION_STOP
        }
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_read(
    _connection: Handle,
    filter: *mut c_void,
    _length: usize,
    end_of_stream: bool,
) -> u32 {
    // SAFETY: made by `filter_new`, and not borrowed.
    let state = unsafe { &mut *filter.cast::<ConnectionState>() };
    if end_of_stream {
        state.on_end(Side::Remote);
    }
    if state.is_allowed() {
        abi::CONNECTION_CONTINUE
    } else {
        abi::CONNECTION_STOP
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_write(
    _connection: Handle,
    filter: *mut c_void,
    _length: usize,
    end_of_stream: bool,
) -> u32 {
    if end_of_stream {
        // SAFETY: made by `filter_new`, and not borrowed.
        unsafe { &mut *filter.cast::<ConnectionState>() }.on_end(Side::Local);
    }
    abi::CONNECTION_CONTINUE
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_event(connection: Handle, filter: *mut c_void, event: u32) {
    let close = |side| {
        // SAFETY: Envoy's own handle; the state is made by `filter_new`, and not borrowed.
        let close = || unsafe { (*filter.cast::<ConnectionState>()).on_close(&Connection::new(connection), side) };
        guarded(close, || warn("peltast: a hook of the module panicked"));
        // SAFETY: as above.
        unsafe { unwatch(filter) };
    };
    match event {
        // SAFETY: Envoy's handles.
        abi::EVENT_CONNECTED => unsafe { on_connected(connection, filter) },
        abi::EVENT_REMOTE_CLOSE => close(Side::Remote),
        abi::EVENT_LOCAL_CLOSE => close(Side::Local),
        _ => {}
    }
}

/// Decides a connection whose handshake is over.
///
/// # Safety
/// See [`decide`].
unsafe fn on_connected(connection: Handle, filter: *mut c_void) {
    // SAFETY: the caller vouches.
    let next = unsafe { decide(connection, filter, ConnectionState::decide) };
    if let Next::Continue = next {
        // SAFETY: the caller vouches; the state is no longer borrowed.
        unsafe { watch(connection, filter) };
    }
    // SAFETY: Envoy's handle; the state is no longer borrowed.
    let connection = unsafe { Connection::new(connection) };
    match next {
        Next::Continue => connection.continue_reading(),
        Next::Close(reason) => connection.close(reason.as_str()),
        Next::Wait => {}
    }
}

#[no_mangle]
unsafe extern "C" fn envoy_dynamic_module_on_network_filter_scheduled(
    _connection: Handle,
    _filter: Handle,
    _event: u64,
) {
    // SAFETY: a hook of this worker; nothing is borrowed. Nothing else is scheduled for connections.
    guarded(|| unsafe { again::look_again() }, || warn("peltast: running connections were not decided again"));
}
