//! What the control plane and the agent tell the module: programs, key sets and revocations by ECDS, the spool by
//! environment.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use flate2::read::ZlibDecoder;
use peltast_engine::counters::CounterFile;
use peltast_engine::recording::Hasher;
use peltast_engine::start::Start;
use peltast_engine::usage::Usage;
use peltast_engine::{KeySets, Program, Revocations, Trust};

use crate::{live, process};

/// Folder that the agent ships from. Set by the agent and not by xDS: the control plane does not choose where a node
/// writes.
const SPOOL_VARIABLE: &str = "PELTAST_SPOOL";
/// Bytes that the sidecar's spools may hold before requests are denied.
const SPOOL_BYTES_VARIABLE: &str = "PELTAST_SPOOL_BYTES";
const DEFAULT_SPOOL_BYTES: u64 = 256 * 1024 * 1024;
/// Longest document; see `MAX_MESSAGE_BYTES` of the control plane.
const MAX_DOCUMENT_BYTES: u64 = 64 * 1024 * 1024;

/// The configuration of one filter, as Envoy holds it.
pub(crate) enum FilterConfig {
    /// Decides.
    Program(&'static Workload),
    /// Carries key sets or revocations; its streams have nothing to do.
    Carrier,
}

impl FilterConfig {
    /// Loads a configuration. What it carries is in force at once, for requests that run already too.
    pub(crate) fn load(name: &[u8], config: &[u8]) -> Result<Self, String> {
        let document = inflate(config, MAX_DOCUMENT_BYTES)?;
        let loaded = match name {
            b"program" => {
                let program = Program::load(&document).map_err(|error| error.to_string())?;
                Self::Program(Workload::take(program))
            }
            b"keys" => {
                let keys = KeySets::load(&document).map_err(|error| error.to_string())?;
                arrive(|arrived| arrived.keys = Some(Arc::new(keys)));
                Self::Carrier
            }
            b"revocations" => {
                let revocations = Revocations::load(&document).map_err(|error| error.to_string())?;
                arrive(|arrived| arrived.revocations = Some(Arc::new(revocations)));
                Self::Carrier
            }
            _ => {
                let name = String::from_utf8_lossy(name);
                return Err(format!("a filter is called {name:?}; program, keys and revocations are known"));
            }
        };
        GENERATION.fetch_add(1, Ordering::Release);
        live::look_now();
        process::start();
        Ok(loaded)
    }
}

/// A document that travels deflated (RFC 1950).
///
/// # Errors
/// It is not whole, or longer than `bound` bytes.
fn inflate(config: &[u8], bound: u64) -> Result<Vec<u8>, String> {
    let mut document = Vec::new();
    let read = ZlibDecoder::new(config).take(bound + 1).read_to_end(&mut document);
    match read {
        Ok(length) if length as u64 <= bound => Ok(document),
        Ok(_) => Err(format!("a document is longer than {bound} bytes")),
        Err(error) => Err(format!("a document cannot be inflated: {error}")),
    }
}

/// The newest program of one workload. Kept here and not in Envoy's configuration of a filter: what runs by an older
/// one is decided again by the newest.
pub(crate) struct Workload(RwLock<Arc<Program>>);

static WORKLOADS: Mutex<Vec<(String, &'static Workload)>> = Mutex::new(Vec::new());

/// How often records are to be brought to the disk; none where they need not be.
pub(crate) fn sync_interval() -> Option<Duration> {
    let workloads = WORKLOADS.lock().unwrap_or_else(PoisonError::into_inner);
    workloads.iter().filter_map(|(_, workload)| workload.program().spool().sync_interval()).min()
}

impl Workload {
    /// Puts `program` in force for its workload.
    pub(crate) fn take(program: Program) -> &'static Self {
        let mut all = WORKLOADS.lock().unwrap_or_else(PoisonError::into_inner);
        let (principal, program) = (program.principal().to_owned(), Arc::new(program));
        *NEWEST.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&program));
        if let Some((_, known)) = all.iter().find(|(name, _)| *name == principal) {
            *known.0.write().unwrap_or_else(PoisonError::into_inner) = program;
            return known;
        }
        // Never freed: a sidecar is one workload's for as long as it lives.
        let new: &'static Self = Box::leak(Box::new(Self(RwLock::new(program))));
        all.push((principal, new));
        new
    }

    pub(crate) fn program(&self) -> Arc<Program> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

static NEWEST: RwLock<Option<Arc<Program>>> = RwLock::new(None);

/// The program that came last, for what never came to a filter; none before the first.
pub(crate) fn newest_program() -> Option<Arc<Program>> {
    NEWEST.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What tokens are trusted by: the key sets and revocations in force.
pub(crate) struct Trusted {
    pub(crate) keys: Arc<KeySets>,
    pub(crate) revocations: Arc<Revocations>,
}

impl Trusted {
    pub(crate) fn as_trust(&self) -> Trust<'_> {
        Trust { keys: &self.keys, revocations: &self.revocations }
    }
}

/// What has arrived of [`Trusted`].
#[derive(Clone)]
struct Arrived {
    keys: Option<Arc<KeySets>>,
    revocations: Option<Arc<Revocations>>,
}

static ARRIVED: Mutex<Arrived> = Mutex::new(Arrived { keys: None, revocations: None });
static TRUSTED: RwLock<Option<Arc<Trusted>>> = RwLock::new(None);
static GENERATION: AtomicU64 = AtomicU64::new(0);

fn arrive(put: impl FnOnce(&mut Arrived)) {
    let mut arrived = ARRIVED.lock().unwrap_or_else(PoisonError::into_inner);
    put(&mut arrived);
    if let Arrived { keys: Some(keys), revocations: Some(revocations) } = arrived.clone() {
        *TRUSTED.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Trusted { keys, revocations }));
    }
}

/// What tokens are trusted by; none before the first key sets and revocations arrived.
pub(crate) fn trusted() -> Option<Arc<Trusted>> {
    TRUSTED.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How often something was put in force.
pub(crate) fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Where records go.
pub(crate) struct SpoolRoot {
    pub(crate) folder: PathBuf,
    pub(crate) usage: Arc<Usage>,
    pub(crate) start: Arc<Start>,
    /// What the caches do, for whoever looks (`peltast proxy cache`).
    pub(crate) caches: CounterFile,
}

/// The spool of this process.
///
/// # Errors
/// For people: why there is none.
pub(crate) fn spool_root() -> Result<&'static SpoolRoot, &'static str> {
    static ROOT: OnceLock<Result<SpoolRoot, String>> = OnceLock::new();
    ROOT.get_or_init(open_spool_root).as_ref().map_err(String::as_str)
}

/// What values are hashed by in records; none without a spool.
pub(crate) fn hasher() -> Option<&'static Hasher> {
    static HASHER: OnceLock<Option<Hasher>> = OnceLock::new();
    HASHER.get_or_init(|| spool_root().ok().map(|root| Hasher::new(root.start.hash_key()))).as_ref()
}

/// Whether what `program` wants hashed in records can be.
pub(crate) fn can_hash(program: &Program) -> bool {
    program.recording().is_none_or(|recording| !recording.hashes() || hasher().is_some())
}

fn open_spool_root() -> Result<SpoolRoot, String> {
    let folder = PathBuf::from(std::env::var_os(SPOOL_VARIABLE).ok_or(format!("{SPOOL_VARIABLE} is not set"))?);
    let bound = match std::env::var(SPOOL_BYTES_VARIABLE) {
        Ok(text) => text.parse().map_err(|_| format!("{SPOOL_BYTES_VARIABLE} is {text:?}; a number is expected"))?,
        Err(_) => DEFAULT_SPOOL_BYTES,
    };
    let refused = |error: std::io::Error| format!("{}: {error}", folder.display());
    let usage = Usage::open(&folder, bound).map_err(refused)?;
    let start = Start::take(&folder).map_err(|error| format!("{}: {error}", folder.join("start").display()))?;
    let caches = CounterFile::create(&folder.join("caches")).map_err(refused)?;
    Ok(SpoolRoot { usage: Arc::new(usage), start: Arc::new(start), caches, folder })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::ZlibEncoder;
    use proptest::prelude::*;

    use super::*;

    fn deflate(document: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(document).expect("written");
        encoder.finish().expect("deflated")
    }

    #[test]
    fn a_document_is_bounded_however_short_it_travels() {
        let long = deflate(&[b'x'; 1_000_000]);
        assert!(long.len() < 2_000);
        assert_eq!(inflate(&long, 1_000_000).map(|document| document.len()), Ok(1_000_000));
        assert!(inflate(&long, 999_999).expect_err("too long").contains("longer than 999999"));
        assert!(inflate(&long[..long.len() - 8], 1_000_000).is_err(), "cut short");
    }

    proptest! {
        #[test]
        fn what_was_deflated_is_inflated_and_nothing_else_panics(document: Vec<u8>, other: Vec<u8>) {
            prop_assert_eq!(inflate(&deflate(&document), 1 << 20), Ok(document));
            let _ = inflate(&other, 1 << 20);
        }
    }
}
