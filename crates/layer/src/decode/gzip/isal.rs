//! Implements [`Inflate`] for [`larder_isal`].

use larder_isal::Isal;

use super::{Inflate, Inflated, Surplus};

impl Inflate for Isal {
    fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<Inflated, String> {
        let inflated = Isal::inflate(self, input, output)?;
        let end = inflated.end.map(|surplus| Surplus { bytes: surplus.bytes, len: surplus.len });
        Ok(Inflated { read: inflated.read, written: inflated.written, end })
    }

    fn reset(&mut self) {
        Isal::reset(self);
    }
}
