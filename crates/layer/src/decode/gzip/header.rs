//! The header of a member (RFC 1952, 2.3), parsed from input of any chunk size. Its content is not stored.

const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
/// Flags that must be zero, because their meaning is not defined.
const RESERVED: u8 = 0xe0;

/// Optional fields, in file order.
const OPTIONAL: [(u8, Field); 4] =
    [(FEXTRA, Field::ExtraLength), (FNAME, Field::Name), (FCOMMENT, Field::Comment), (FHCRC, Field::Crc)];

pub(super) struct Header {
    flags: u8,
    field: Field,
}

/// The field that the next byte belongs to.
#[derive(Clone, Copy)]
enum Field {
    /// The fields that every header has, with the number of their bytes read so far.
    Fixed(u8),
    ExtraLength,
    ExtraLengthHigh(u8),
    /// The number of bytes left.
    Extra(u16),
    Name,
    Comment,
    Crc,
    CrcHigh(u8),
    End,
}

impl Header {
    pub(super) fn new() -> Self {
        Header { flags: 0, field: Field::Fixed(0) }
    }

    /// Continues parsing. Returns how many bytes of `input` belong to the header, and whether it is now
    /// complete. `crc` covers the header bytes read so far.
    pub(super) fn take(&mut self, input: &[u8], crc: &mut crc_fast::Digest) -> Result<(usize, bool), String> {
        let mut read = 0;
        while let Some(byte) = input.get(read)
            && !matches!(self.field, Field::Crc | Field::CrcHigh(_) | Field::End)
        {
            self.field = self.after(*byte)?;
            read += 1;
        }
        crc.update(&input[..read]);
        while let Some(byte) = input.get(read) {
            self.field = match self.field {
                Field::Crc => Field::CrcHigh(*byte),
                Field::CrcHigh(low)
                    if crc.finalize() & 0xffff == u64::from(u16::from_le_bytes([low, *byte])) =>
                {
                    Field::End
                }
                Field::CrcHigh(_) => return Err("the CRC of a member's header is wrong".into()),
                _ => break,
            };
            read += 1;
        }
        Ok((read, matches!(self.field, Field::End)))
    }

    /// Processes one byte of a field before the CRC.
    fn after(&mut self, byte: u8) -> Result<Field, String> {
        Ok(match self.field {
            Field::Fixed(0) if byte != 0x1f => return Err("a member has no magic bytes".into()),
            Field::Fixed(1) if byte != 0x8b => return Err("a member has no magic bytes".into()),
            Field::Fixed(2) if byte != 8 => return Err(format!("compression method {byte} is not deflate")),
            Field::Fixed(3) if byte & RESERVED != 0 => {
                return Err(format!("reserved flags are set in a member's header: {:#04x}", byte & RESERVED));
            }
            Field::Fixed(3) => {
                self.flags = byte;
                Field::Fixed(4)
            }
            Field::Fixed(9) => self.optional(0),
            Field::Fixed(read) => Field::Fixed(read + 1),
            Field::ExtraLength => Field::ExtraLengthHigh(byte),
            Field::ExtraLengthHigh(low) => match u16::from_le_bytes([low, byte]) {
                0 => self.optional(1),
                length => Field::Extra(length),
            },
            Field::Extra(1) => self.optional(1),
            Field::Extra(left) => Field::Extra(left - 1),
            Field::Name if byte == 0 => self.optional(2),
            Field::Comment if byte == 0 => self.optional(3),
            field => field,
        })
    }

    /// Returns the first field that is present, starting at index `from` of [`OPTIONAL`].
    fn optional(&self, from: usize) -> Field {
        let mut fields = OPTIONAL.into_iter().skip(from);
        fields.find(|(flag, _)| self.flags & flag != 0).map_or(Field::End, |(_, field)| field)
    }
}
