//! Standard error, shared by logs, messages and progress bars so that none tears the other.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, PoisonError, RwLock};

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;

/// A handle to standard error; clones share the bars.
#[derive(Clone, Debug, Default)]
pub struct Console {
    bars: Arc<RwLock<Option<MultiProgress>>>,
}

impl Console {
    /// Whether a person sees it.
    pub fn is_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// From now on `bars` are taken off the screen while a line is written.
    pub fn attach(&self, bars: MultiProgress) {
        *self.bars.write().unwrap_or_else(PoisonError::into_inner) = Some(bars);
    }

    /// The bars are gone.
    pub fn detach(&self) {
        *self.bars.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Writes whole lines. A standard error that is closed is no reason to fail.
    pub fn print(&self, text: &str) {
        let _ = (&mut self.clone()).write_all(text.as_bytes());
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bars = self.bars.read().unwrap_or_else(PoisonError::into_inner);
        let write = || io::stderr().lock().write_all(bytes);
        match &*bars {
            Some(bars) => bars.suspend(write)?,
            None => write()?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}

impl<'a> MakeWriter<'a> for Console {
    type Writer = Console;

    fn make_writer(&'a self) -> Console {
        self.clone()
    }
}
