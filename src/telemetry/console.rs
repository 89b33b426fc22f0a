//! Standard error, shared by logs, messages and progress bars, so that their output does not mix.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Arc, PoisonError, RwLock};

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;

/// A handle to standard error. Clones share the progress bars.
#[derive(Clone, Debug, Default)]
pub struct Console {
    bars: Arc<RwLock<Option<MultiProgress>>>,
}

impl Console {
    /// Reports whether standard error is a terminal.
    pub fn is_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Registers `bars`, which are hidden from then on while a line is written.
    pub fn attach(&self, bars: MultiProgress) {
        *self.bars.write().unwrap_or_else(PoisonError::into_inner) = Some(bars);
    }

    /// Unregisters the progress bars.
    pub fn detach(&self) {
        *self.bars.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Prints complete lines. Errors are ignored, because standard error can be closed.
    pub fn print(&self, text: &str) {
        let _ = self.clone().write_all(text.as_bytes());
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
