//! The few requests that a push to a registry needs. They use HTTP/1.0, which has neither chunks nor
//! connection reuse.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use larder_model::digest::Digest;
use larder_testing::image::{Document, Target};

/// A registry on loopback that receives pushes.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// Value of the `Authorization` header.
    pub(crate) authorization: Option<String>,
}

/// A response of the registry.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn expect(self, status: u16, what: &str) -> io::Result<Self> {
        if self.status == status {
            return Ok(self);
        }
        let body = String::from_utf8_lossy(&self.body);
        Err(io::Error::other(format!("{what}: {} {body}", self.status)))
    }
}

impl Client {
    /// Sends one request with a body.
    pub(crate) fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> io::Result<Response> {
        let mut headers = vec![("Content-Type", content_type)];
        headers.extend(self.authorization.as_deref().map(|value| ("Authorization", value)));
        send(self.address, method, path, &headers, body)
    }
}

/// Sends one request with these headers, in addition to `Host` and `Content-Length`.
pub(crate) fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head =
        format!("{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    head.extend(headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
    write!(stream, "{head}\r\n")?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other(format!("{method} {path}: not an HTTP answer")))
}

fn parse(answer: &[u8]) -> Option<Response> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    Some(Response {
        status,
        headers: headers.map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
        body: answer[end + 4..].to_vec(),
    })
}

impl Target for Client {
    fn put_blob(&mut self, repository: &str, digest: &Digest, bytes: &Bytes) -> io::Result<()> {
        let blob = format!("/v2/{repository}/blobs/{digest}");
        if self.request("HEAD", &blob, "text/plain", &[])?.status == 200 {
            return Ok(());
        }
        let uploads = format!("/v2/{repository}/blobs/uploads/");
        let upload = self.request("POST", &uploads, "text/plain", &[])?.expect(202, &uploads)?;
        let location =
            upload.header("Location").ok_or_else(|| io::Error::other("an upload without a Location"))?;
        let host = format!("http://{}", self.address);
        let location = location.strip_prefix(&host).unwrap_or(location);
        let separator = if location.contains('?') { '&' } else { '?' };
        let location = format!("{location}{separator}digest={digest}");
        self.request("PUT", &location, "application/octet-stream", bytes)?.expect(201, &blob)?;
        Ok(())
    }

    fn put_manifest(&mut self, repository: &str, reference: &str, document: &Document) -> io::Result<()> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.request("PUT", &path, &document.media_type, &document.bytes)?.expect(201, &path)?;
        Ok(())
    }
}
