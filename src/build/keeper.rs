//! The process that mounts for this one (`cli::keeper`): a build that is confined can mount nothing itself.
//!
//! ```text
//! keeper ──► build   {"job":"…"}                 once, first
//! build  ──► keeper  {"mount":"<volume>"}        a volume of the shared directory, to be read
//! keeper ──► build   {}  or  {"refused":"why"}
//! ```
//! A line each, over a socket that is the build's standard input. Where it ends the keeper is gone, and the build goes too.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::share::VolumeName;

/// Most bytes of a line: a job of 1 MiB, escaped.
pub const LONGEST_LINE: usize = 8 << 20;

/// What the keeper says first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Greeting {
    /// The text of the job, where there is one.
    pub job: Option<String>,
}

/// What a build asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// To mount the sealed disk of a volume over its directory.
    Mount(VolumeName),
}

/// What it is answered.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

/// The keeper of this build; clones share it.
#[derive(Clone, Debug)]
pub struct Keeper(Arc<Mutex<BufReader<UnixStream>>>);

impl Keeper {
    /// The keeper at the other end of `stream`, and what it said first.
    pub fn meet(stream: UnixStream) -> io::Result<(Self, Greeting)> {
        let mut stream = BufReader::new(stream);
        let greeting = hear(&mut stream)?;
        Ok((Keeper(Arc::new(Mutex::new(stream))), greeting))
    }

    /// Has a volume of the shared directory mounted; the error says why that cannot be. Blocks.
    pub fn mount(&self, volume: &VolumeName) -> Result<(), String> {
        // An answer that was not read would be the next question's.
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = say(stream.get_mut(), &Request::Mount(volume.clone()));
        let reply: Reply =
            asked.and_then(|()| hear(&mut stream)).map_err(|e| format!("asking the keeper: {e}"))?;
        reply.refused.map_or(Ok(()), Err)
    }
}

fn say(to: &mut UnixStream, what: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    to.write_all(&line)
}

fn hear<T: for<'a> Deserialize<'a>>(from: &mut BufReader<UnixStream>) -> io::Result<T> {
    let mut line = Vec::new();
    from.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}
