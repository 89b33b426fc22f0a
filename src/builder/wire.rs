//! Frames between the processes of a build, over a connected pair of Unix sockets.
//!
//! ```text
//! u32 length of the header ┐ little endian; descriptors, if any,
//! u32 length of the body   ┘ come with these eight bytes (unix(7), SCM_RIGHTS)
//! header, JSON
//! body, bytes
//! ```
//! Both sides assume that the peer can be compromised: lengths are limited, and a malformed header ends the
//! connection.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Maximum size of a header, bytes: a job of 1 MiB, escaped, or a failure that names every image.
const MAX_HEADER: usize = 8 << 20;
/// Maximum size of a body, bytes: far above any manifest, config or `cache.json`.
const MAX_BODY: usize = (64 << 20) + 1;
/// Maximum number of descriptors in a frame.
const MAX_DESCRIPTORS: usize = 2;

/// A received frame of the protocol.
#[derive(Debug)]
pub struct Frame<H> {
    /// The decoded JSON header.
    pub header: H,
    /// The body; empty if there is none.
    pub body: Vec<u8>,
    /// Descriptors that came with the frame.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends a frame. Blocks while the socket is full.
///
/// # Errors
/// Those of sendmsg(2) and write(2); `InvalidInput` for a frame that is too large.
pub fn send(
    mut to: &UnixStream,
    header: &impl Serialize,
    body: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let header = serde_json::to_vec(header)?;
    let too_large = header.len() > MAX_HEADER || body.len() > MAX_BODY || descriptors.len() > MAX_DESCRIPTORS;
    let (Ok(header_len), Ok(body_len), false) =
        (u32::try_from(header.len()), u32::try_from(body.len()), too_large)
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut prefix = [0; 8];
    prefix[..4].copy_from_slice(&header_len.to_le_bytes());
    prefix[4..].copy_from_slice(&body_len.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let sent = loop {
        match sendmsg(to, &[IoSlice::new(&prefix)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => break sent?,
        }
    };
    to.write_all(&prefix[sent..])?;
    to.write_all(&header)?;
    to.write_all(body)
}

/// Receives a frame, or `None` at the end of the connection. Blocks.
///
/// # Errors
/// Those of recvmsg(2) and read(2); `InvalidData` for a frame that is too large or malformed.
pub fn receive<H: DeserializeOwned>(mut from: &UnixStream) -> io::Result<Option<Frame<H>>> {
    let mut prefix = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(from, &mut [IoSliceMut::new(&mut prefix)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?.bytes,
        }
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received == 0 {
        return Ok(None);
    }
    from.read_exact(&mut prefix[received..])?;
    let length = |bytes: &[u8]| {
        let mut four = [0; 4];
        four.copy_from_slice(bytes);
        u32::from_le_bytes(four) as usize
    };
    let (header_len, body_len) = (length(&prefix[..4]), length(&prefix[4..]));
    if header_len > MAX_HEADER || body_len > MAX_BODY {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too large"));
    }
    let header = read(from, header_len)?;
    let body = read(from, body_len)?;
    Ok(Some(Frame { header: serde_json::from_slice(&header)?, body, descriptors }))
}

/// Reads `len` bytes. Memory grows with the received data, not with the announced length.
fn read(from: &UnixStream, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(len as u64).read_to_end(&mut bytes)?;
    if bytes.len() == len { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn headers_bodies_and_descriptors_arrive() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send(&one, &"first", b"body", &[writer.as_fd()]).unwrap();
        send(&one, &2, &[], &[]).unwrap();
        drop((one, writer));
        let first: Frame<String> = receive(&other).unwrap().unwrap();
        assert_eq!((first.header.as_str(), &first.body[..]), ("first", &b"body"[..]));
        let [passed] = <[OwnedFd; 1]>::try_from(first.descriptors).unwrap();
        File::from(passed).write_all(b"through").unwrap();
        let mut through = String::new();
        reader.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through");
        let second: Frame<u8> = receive(&other).unwrap().unwrap();
        assert_eq!((second.header, second.body.len(), second.descriptors.len()), (2, 0, 0));
        assert!(receive::<u8>(&other).unwrap().is_none());
    }

    #[test]
    fn malformed_frames_are_refused() {
        for (bytes, kind) in [
            (&[0xff; 8][..], io::ErrorKind::InvalidData),
            (&[1, 0, 0, 0], io::ErrorKind::UnexpectedEof),
            (&[9, 0, 0, 0, 0, 0, 0, 0, b'1'], io::ErrorKind::UnexpectedEof),
        ] {
            let (mut one, other) = UnixStream::pair().unwrap();
            one.write_all(bytes).unwrap();
            drop(one);
            assert_eq!(receive::<u8>(&other).unwrap_err().kind(), kind, "{bytes:?}");
        }
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(b"\x01\0\0\0\0\0\0\0[").unwrap();
        assert!(receive::<u8>(&other).is_err());
    }
}
