//! A name server that knows one name.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A name server on port 53 of a loopback address. Stops when it is dropped.
#[derive(Debug)]
pub(crate) struct NameServer {
    address: Ipv4Addr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Starts a server that resolves `name` to 127.0.0.1, and no other name.
    pub(crate) fn start(address: Ipv4Addr, name: &str) -> Self {
        let socket = UdpSocket::bind((address, 53)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (stop, name) = (Arc::new(AtomicBool::new(false)), name.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut query = [0; 512];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((size, from)) = socket.recv_from(&mut query) else { continue };
                let _ = socket.send_to(&answer(&query[..size], &name), from);
            }
        });
        NameServer { address, stop, thread: Some(thread) }
    }

    /// Writes a `resolv.conf` like that of a kubelet, whose search list completes names without `domain`.
    pub(crate) fn configure(&self, file: &Path, domain: &str) {
        let text = format!("nameserver {}\nsearch {domain}\noptions ndots:5\n", self.address);
        std::fs::write(file, text).unwrap();
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Builds a response (RFC 1035, 4.1): the header, the question and, if it is for an address of that name, the
/// address.
fn answer(query: &[u8], name: &str) -> Vec<u8> {
    let mut at = 12;
    let mut labels = Vec::new();
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
        at = end;
    }
    let question = &query[12..at + 5];
    let known = labels.join(".").eq_ignore_ascii_case(name);
    let is_address = known && question.ends_with(&[0, 1, 0, 1]);
    let code = if known { 0 } else { 3 };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    answer.extend(question);
    if is_address {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    answer
}
