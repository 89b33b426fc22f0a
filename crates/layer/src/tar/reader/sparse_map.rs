//! Reads the map of a sparse file, which is in the header and following blocks, in pax records, or before the
//! data.

use std::io::BufRead;

use super::Reader;
use crate::tar::block::Header;
use crate::tar::error::{Error, Fault};
use crate::tar::pax::GnuSparse;
use crate::tar::sparse::{Lines, Pairs, Region};
use crate::tar::{BLOCK, Member, Record, number};

impl<B: BufRead, R: Record> Reader<B, R> {
    /// Reads logical size and map of an old GNU sparse file. Blocks with further regions precede the data.
    pub(super) fn old_gnu_map(&mut self, header: &Header<'_>) -> Result<(u64, Vec<Region>), Error> {
        if !header.is_gnu() {
            return Err(self.fault(Fault::Sparse("type 'S' in a header that is not GNU's")));
        }
        let (size, regions, mut more) = header.gnu_sparse();
        let mut pairs = Pairs::new(self.limits.max_sparse_regions);
        let size = number::field(size, "real size")
            .and_then(|size| number::size(size, "real size"))
            .and_then(|size| pairs.old_gnu(regions).map(|()| size))
            .map_err(|fault| self.fault(fault))?;
        let mut blocks = 0;
        while more {
            // Blocks may be empty, so the limit on regions does not bound their number.
            blocks += 1;
            self.within("blocks of a sparse map", blocks, self.limits.max_sparse_regions as u64 / 21 + 1)?;
            let block = self.block()?;
            let block = block.ok_or_else(|| self.fault(Fault::Truncated("a sparse map")))?;
            pairs.old_gnu(&block[..504]).map_err(|fault| self.fault(fault))?;
            more = block[504] != 0;
        }
        let map = pairs.finish().map_err(|fault| self.fault(fault))?;
        Ok((size, map.unwrap_or_default()))
    }

    /// Returns the map of a PAX sparse file; `None` for a plain one. The name in its records replaces that of
    /// the header.
    pub(super) fn pax_map(
        &mut self,
        member: &mut Member,
        sparse: GnuSparse,
        stored: u64,
    ) -> Result<Option<Vec<Region>>, Error> {
        let in_data = match (&sparse.major[..], &sparse.minor[..]) {
            (b"0", b"0" | b"1") => false,
            (b"1", b"0") => true,
            (b"", b"") if sparse.map.is_some() => false,
            (b"", b"") => return Ok(None),
            _ => return Err(self.fault(Fault::Sparse("unknown version"))),
        };
        if !sparse.name.is_empty() {
            self.position.path = sparse.name;
        }
        let size = sparse.size.or(sparse.real_size);
        let size = match size {
            Some(size) => number::size(size, "GNU.sparse.size").map_err(|fault| self.fault(fault))?,
            None => stored,
        };
        member.size = size;
        if in_data {
            return self.map_in_data().map(Some);
        }
        let map = sparse.map.unwrap_or_default();
        if sparse.regions != i64::try_from(map.len()).ok() {
            return Err(
                self.fault(Fault::Sparse("GNU.sparse.numblocks does not match the number of regions"))
            );
        }
        Ok(Some(map))
    }

    /// Reads the map of PAX 1.0, which occupies the first blocks of the data.
    fn map_in_data(&mut self) -> Result<Vec<Region>, Error> {
        let mut lines = Lines::new(self.limits.max_sparse_regions);
        loop {
            if self.data.left < BLOCK as u64 {
                return Err(self.fault(Fault::Truncated("a sparse map")));
            }
            let block = self.block()?;
            let block = block.ok_or_else(|| self.fault(Fault::Truncated("a sparse map")))?;
            self.data.left -= BLOCK as u64;
            if lines.block(&block).map_err(|fault| self.fault(fault))? {
                return lines.finish().map_err(|fault| self.fault(fault));
            }
        }
    }
}
