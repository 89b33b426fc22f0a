//! Live events of an image cache: server-sent events (WHATWG HTML, 9.2).

use reqwest::Response;

use larder_model::event::Line;

/// Maximum size of one event, bytes.
const MAX_EVENT: usize = 4 << 20;

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    response: Response,
    parser: Parser,
}

/// One event of the stream.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// An event of the cache's record.
    Status {
        /// Number of the event. A client that reconnects starts after it.
        sequence: u64,
        /// The event as the daemon sent it, JSON.
        json: String,
    },
    /// A line that the builder printed.
    Build(Box<Line>),
}

impl Events {
    pub(super) fn new(response: Response) -> Self {
        Events { response, parser: Parser::default() }
    }

    /// Returns the next event. `None` at the end of the stream, including a broken connection.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            if let Some(event) = self.parser.next() {
                return Some(event);
            }
            let chunk = self.response.chunk().await.ok()??;
            self.parser.feed(&chunk)?;
        }
    }
}

/// Parser of the byte stream. Unknown events are ignored.
#[derive(Debug, Default)]
struct Parser {
    bytes: Vec<u8>,
}

impl Parser {
    /// Adds bytes. `None` if an event exceeds the maximum size.
    fn feed(&mut self, chunk: &[u8]) -> Option<()> {
        self.bytes.extend_from_slice(chunk);
        (self.bytes.len() <= MAX_EVENT).then_some(())
    }

    fn next(&mut self) -> Option<StreamEvent> {
        loop {
            let end = self.bytes.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
            if let Some(event) = event(&String::from_utf8_lossy(&block)) {
                return Some(event);
            }
        }
    }
}

fn event(block: &str) -> Option<StreamEvent> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim_start())
    };
    let data = field("data")?;
    match field("event")? {
        "status" => Some(StreamEvent::Status { sequence: field("id")?.parse().ok()?, json: data.to_owned() }),
        "build" => Some(StreamEvent::Build(Box::new(serde_json::from_str(data).ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_cut_anywhere() {
        let stream = ": still here\n\nevent: status\nid: 7\ndata: {\"status\":\"Creating\"}\n\nevent: else\ndata: 1\n\n\
            event: build\ndata: {\"v\":1,\"time\":\"1970-01-01T00:00:00Z\",\"event\":\"synced\",\"layers\":2}\n\n";
        for size in [1, 3, 1000] {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                parser.feed(chunk).unwrap();
                events.extend(std::iter::from_fn(|| parser.next()));
            }
            assert!(
                matches!(&events[0], StreamEvent::Status { sequence: 7, json } if json.contains("Creating"))
            );
            assert!(matches!(&events[1], StreamEvent::Build(_)));
            assert_eq!(events.len(), 2);
        }
        assert!(Parser::default().feed(&vec![b'x'; MAX_EVENT + 1]).is_none());
    }
}
