//! Extended headers, which precede their member: PAX records, and long names of GNU tar.

use std::io::BufRead;

use super::{Reader, padding_of};
use crate::tar::block::{Header, Typeflag, c_string};
use crate::tar::error::{Error, Fault};
use crate::tar::pax::Pax;
use crate::tar::{Record, number};

/// Maximum number of extended headers before one member; honest tars have at max three.
const MAX_EXTENDED: usize = 16;

/// Extended headers that precede their member.
#[derive(Default)]
pub(super) struct Extended {
    pub(super) pax: Option<Pax>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    /// Type of the last extended header, and the number of headers.
    pub(super) last: Option<Typeflag>,
    count: usize,
}

impl<B: BufRead, R: Record> Reader<B, R> {
    /// Reads an extended header with its body.
    pub(super) fn extend(&mut self, header: &Header<'_>, extended: &mut Extended) -> Result<(), Error> {
        let flag = header.typeflag();
        let size = header
            .data_size()
            .and_then(|size| number::size(size, "size"))
            .map_err(|fault| self.fault(fault))?;
        self.within("bytes in an extended header", size, self.limits.max_pax_bytes)?;
        extended.count += 1;
        self.within("extended headers of one member", extended.count as u64, MAX_EXTENDED as u64)?;
        let mut body = Vec::new();
        self.raw_into(&mut body, size)?;
        if body.len() as u64 != size {
            return Err(self.fault(Fault::Truncated("an extended header")));
        }
        self.raw_skip(padding_of(size))?;
        if flag == Typeflag(b'g') {
            // A global header between an extended header and its member is rejected, because readers
            // interpret it differently.
            if let Some(last) = extended.last {
                return Err(self.fault(Fault::Orphan(last)));
            }
            Pax::parse(&body, self.limits.max_sparse_regions).map_err(|fault| self.fault(fault))?;
            return Ok(());
        }
        extended.last = Some(flag);
        match flag.0 {
            b'L' => extended.long_name = name(body),
            b'K' => extended.long_link = name(body),
            _ => {
                let pax = Pax::parse(&body, self.limits.max_sparse_regions);
                extended.pax = Some(pax.map_err(|fault| self.fault(fault))?);
            }
        }
        Ok(())
    }
}

/// Returns the name that the body of an extended header contains; `None` if it is empty.
fn name(mut body: Vec<u8>) -> Option<Vec<u8>> {
    body.truncate(c_string(&body).len());
    (!body.is_empty()).then_some(body)
}
