//! What the daemon tells of an image cache while it happens: server-sent events (WHATWG HTML, 9.2).

use reqwest::Response;

use larder_model::event::Line;

/// Most bytes of one event.
const MAX_EVENT: usize = 4 << 20;

/// A stream of events.
#[derive(Debug)]
pub struct Events {
    response: Response,
    parser: Parser,
}

/// One event.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// Something happened to the cache: number and message.
    Status {
        /// The number of the event; a client that comes back begins after it.
        sequence: u64,
        /// The event as the daemon wrote it, JSON.
        json: String,
    },
    /// The builder said something.
    Build(Box<Line>),
}

impl Events {
    pub(super) fn new(response: Response) -> Self {
        Events { response, parser: Parser::default() }
    }

    /// The next event; none at the end of the stream, whoever ended it.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        loop {
            if let Some(told) = self.parser.next() {
                return Some(told);
            }
            let chunk = self.response.chunk().await.ok()??;
            self.parser.feed(&chunk)?;
        }
    }
}

/// Takes bytes, gives events. What it does not know it passes over.
#[derive(Debug, Default)]
struct Parser {
    bytes: Vec<u8>,
}

impl Parser {
    /// None where an event is longer than any of ours.
    fn feed(&mut self, chunk: &[u8]) -> Option<()> {
        self.bytes.extend_from_slice(chunk);
        (self.bytes.len() <= MAX_EVENT).then_some(())
    }

    fn next(&mut self) -> Option<StreamEvent> {
        loop {
            let end = self.bytes.windows(2).position(|pair| pair == b"\n\n")?;
            let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
            if let Some(told) = event(&String::from_utf8_lossy(&block)) {
                return Some(told);
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
            let mut told = Vec::new();
            for chunk in stream.as_bytes().chunks(size) {
                parser.feed(chunk).unwrap();
                told.extend(std::iter::from_fn(|| parser.next()));
            }
            assert!(
                matches!(&told[0], StreamEvent::Status { sequence: 7, json } if json.contains("Creating"))
            );
            assert!(matches!(&told[1], StreamEvent::Build(_)));
            assert_eq!(told.len(), 2);
        }
        assert!(Parser::default().feed(&vec![b'x'; MAX_EVENT + 1]).is_none());
    }
}
