//! What the fuzz targets share.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use stenocast::config::Secret;
use stenocast::metrics::Metrics;

/// Bytes for the stack that a handler of a stack overflow runs on.
const HANDLER_STACK_BYTES: usize = 256 << 10;

/// Catches an overflow of the stack; the `init` of a target whose code recurses.
///
/// An overflow then is reported with its input, like any other crash. Without it the process would be gone before
/// libFuzzer could write the input down.
pub fn catch_stack_overflow() {
    let stack = Box::leak(vec![0u8; HANDLER_STACK_BYTES].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
    // SAFETY: the stack is leaked, so it outlives the process; libFuzzer keeps SA_ONSTACK when it installs its handler.
    unsafe {
        libc::sigaltstack(&stack, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        action.sa_flags = libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut());
    }
}

/// One set for the process: a new one for each input would take most of the time.
pub fn metrics() -> Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Arc::new(Metrics::new())).clone()
}

/// An empty directory, in memory where the system has that. It goes with the value.
pub fn scratch() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("stenocast-fuzz-").tempdir_in(base).expect("a writable temporary directory")
}

/// The secret that targets sign with.
pub fn secret() -> Secret {
    Secret::new(SECRET)
}

pub const SECRET: &str = "only for fuzzing, known to everybody";
/// The API key that belongs to [`SECRET`].
pub const API_KEY: &str = "APIfuzz";

/// Takes bytes and numbers from the front of an input. Past its end everything is 0.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }
}
