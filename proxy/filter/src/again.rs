//! Streams and connections that were let through, by Envoy's handles: how they get on their worker's list and off it,
//! and how all of them are decided again. What is safe of it is in [`crate::live`].

use peltast_engine::Reason;

use crate::abi::Handle;
use crate::config::generation;
use crate::connection::ConnectionState;
use crate::entry;
use crate::envoy::Stream;
use crate::live::{Live, Owner, Validity};
use crate::network::Connection;
use crate::network_entry;
use crate::worker;

/// Lists what was let through with its worker.
///
/// # Safety
/// The handles must be of something that lives, on its worker's thread, and nothing may borrow the filter.
pub(crate) unsafe fn begin(live: Live, validity: Validity) {
    let place = worker::with(|worker| worker.live.begin(live, validity));
    // SAFETY: the caller vouches.
    unsafe { set_place(live.owner, live.filter, Some(place)) };
}

/// Takes a filter off its worker's list, if it is there.
///
/// # Safety
/// As [`begin`].
pub(crate) unsafe fn end(owner: Owner, filter: Handle) {
    // SAFETY: the caller vouches; what is listed lives, and one borrow follows the other.
    unsafe {
        let Some(place) = set_place(owner, filter, None) else { return };
        if let Some(moved) = worker::with(|worker| worker.live.end(place)) {
            set_place(moved.owner, moved.filter, Some(place));
        }
    }
}

/// Sets where a filter is listed; gives where it was.
///
/// # Safety
/// As [`begin`].
unsafe fn set_place(owner: Owner, filter: Handle, place: Option<usize>) -> Option<usize> {
    // SAFETY: the caller vouches; filters of connections are made as what they are cast to here.
    unsafe {
        match owner {
            Owner::Stream => std::mem::replace(&mut entry::state_of(filter)?.place, place),
            Owner::Connection => std::mem::replace(&mut (*filter.cast::<ConnectionState>()).place, place),
        }
    }
}

/// Decides everything again that runs on this worker, and ends what is no longer allowed.
///
/// # Safety
/// Inside a hook of this worker; nothing may borrow a filter.
pub(crate) unsafe fn look_again() {
    let mut validity = Validity { generation: generation(), ends_ms: u64::MAX };
    let mut ends = Vec::new();
    for live in worker::with(|worker| worker.live.all()) {
        // SAFETY: what is listed lives: nothing in deciding ends it.
        let decided = unsafe {
            match live.owner {
                Owner::Stream => entry::decide_again(live.handle, live.filter),
                Owner::Connection => network_entry::decide_again(live.handle, live.filter),
            }
        };
        match decided {
            Ok(own) => validity.ends_ms = own.ends_ms.min(validity.ends_ms),
            Err(reason) => ends.push((live, reason)),
        }
    }
    worker::with(|worker| worker.live.decided(validity));
    for (live, reason) in ends {
        // The end of one may have been the end of another.
        if worker::with(|worker| worker.live.has(live)) {
            // SAFETY: it is listed, so it lives; nothing is borrowed.
            unsafe { close(live, reason) };
        }
    }
}

/// # Safety
/// As [`begin`]; other hooks run inside.
unsafe fn close(live: Live, reason: Reason) {
    // SAFETY: the caller vouches.
    unsafe {
        match live.owner {
            Owner::Stream => Stream::new(live.handle).reset(reason.as_str()),
            Owner::Connection => Connection::new(live.handle).close(reason.as_str()),
        }
    }
}
