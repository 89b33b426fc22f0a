//! Parts of a tar archive.

use larder_layer::tar::BLOCK;

/// Returns the header of a member.
#[allow(dead_code, reason = "not every target writes members")]
pub fn header(name: &str, kind: u8, size: usize) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    fix_checksum(&mut header);
    header
}

/// Corrects the checksum of every block whose checksum field is not zero. All other blocks remain data.
#[allow(dead_code, reason = "not every target corrects checksums")]
pub fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(BLOCK) {
        if let Ok(block) = <&mut [u8; BLOCK]>::try_from(block)
            && block[148] != 0
        {
            fix_checksum(block);
        }
    }
}

fn fix_checksum(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}
