//! gzip (RFC 1952): many members in a row (pigz, estargz), zero padding after the last as GNU gzip tolerates it.

use flate2::{Decompress, FlushDecompress, Status};

use super::{Codec, Step};

/// Largest window of deflate, as a power of two; every gzip member may use it.
const WINDOW_BITS: u8 = 15;

/// Header, CRC and length of each member are read and verified by the backend's own gzip mode.
pub(super) struct Gzip {
    inflate: Decompress,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Member,
    Between,
    Padding,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Gzip { inflate: Decompress::new_gzip(WINDOW_BITS), place: Place::Member }
    }
}

impl Codec for Gzip {
    fn step(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step, String> {
        if self.place == Place::Between {
            match input.first() {
                None => return Ok(Step { read: 0, written: 0 }),
                Some(0) => self.place = Place::Padding,
                Some(0x1f) => {
                    self.inflate = Decompress::new_gzip(WINDOW_BITS);
                    self.place = Place::Member;
                }
                Some(_) => return Err("something other than a member follows the last one".into()),
            }
        }
        if self.place == Place::Padding {
            return match input.iter().find(|b| **b != 0) {
                None => Ok(Step { read: input.len(), written: 0 }),
                Some(_) => Err("something other than zeros follows the last member".into()),
            };
        }
        let (read, written) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self
            .inflate
            .decompress(input, output, FlushDecompress::None)
            .map_err(|error| error.message().unwrap_or("damaged data").to_owned())?;
        if status == Status::StreamEnd {
            self.place = Place::Between;
        }
        let advance = |now: u64, before: u64| usize::try_from(now - before).map_err(|e| e.to_string());
        Ok(Step {
            read: advance(self.inflate.total_in(), read)?,
            written: advance(self.inflate.total_out(), written)?,
        })
    }

    fn may_end(&self) -> bool {
        self.place != Place::Member
    }
}
