//! What the control plane and the agent tell the module: programs and key sets by ECDS, the spool by environment.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use peltast_engine::usage::Usage;
use peltast_engine::{KeySets, Program};

/// Folder that the agent ships from. Set by the agent and not by xDS: the control plane does not choose where a node
/// writes.
const SPOOL_VARIABLE: &str = "PELTAST_SPOOL";
/// Bytes that the sidecar's spools may hold before requests are denied.
const SPOOL_BYTES_VARIABLE: &str = "PELTAST_SPOOL_BYTES";
const DEFAULT_SPOOL_BYTES: u64 = 256 * 1024 * 1024;

/// The configuration of one filter, as Envoy holds it.
pub(crate) enum FilterConfig {
    /// Decides.
    Program(Arc<Program>),
    /// Carries key sets; its streams have nothing to do.
    Keys,
}

impl FilterConfig {
    /// Loads a configuration. Key sets are in force at once, for programs that are live already.
    pub(crate) fn load(name: &[u8], config: &[u8]) -> Result<Self, String> {
        match name {
            b"program" => {
                let program = Program::load(config).map_err(|error| error.to_string())?;
                Ok(Self::Program(Arc::new(program)))
            }
            b"keys" => {
                let keys = KeySets::load(config).map_err(|error| error.to_string())?;
                *KEYS.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(keys));
                Ok(Self::Keys)
            }
            _ => Err(format!("a filter is called {:?}; program and keys are known", String::from_utf8_lossy(name))),
        }
    }
}

static KEYS: RwLock<Option<Arc<KeySets>>> = RwLock::new(None);

/// The key sets in force; none before the first arrived.
pub(crate) fn keys() -> Option<Arc<KeySets>> {
    KEYS.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Where records go.
pub(crate) struct SpoolRoot {
    pub(crate) folder: PathBuf,
    pub(crate) usage: Arc<Usage>,
}

/// The spool of this process.
///
/// # Errors
/// For people: why there is none.
pub(crate) fn spool_root() -> Result<&'static SpoolRoot, &'static str> {
    static ROOT: OnceLock<Result<SpoolRoot, String>> = OnceLock::new();
    ROOT.get_or_init(open_spool_root).as_ref().map_err(String::as_str)
}

fn open_spool_root() -> Result<SpoolRoot, String> {
    let folder = PathBuf::from(std::env::var_os(SPOOL_VARIABLE).ok_or(format!("{SPOOL_VARIABLE} is not set"))?);
    let bound = match std::env::var(SPOOL_BYTES_VARIABLE) {
        Ok(text) => text.parse().map_err(|_| format!("{SPOOL_BYTES_VARIABLE} is {text:?}; a number is expected"))?,
        Err(_) => DEFAULT_SPOOL_BYTES,
    };
    let usage = Usage::open(&folder, bound).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok(SpoolRoot { folder, usage: Arc::new(usage) })
}
