//! Progress of a build, computed only from its events.

use std::collections::HashMap;

use larder_model::digest::Digest;
use larder_model::event::Event;

/// Sums over the events so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    total: u64,
    settled: u64,
    running: HashMap<Digest, RunningLayer>,
}

#[derive(Clone, Copy, Debug)]
struct RunningLayer {
    compressed_size: u64,
    received: u64,
}

impl Progress {
    /// Updates the sums with an event.
    pub fn observe(&mut self, event: &Event) {
        match event {
            Event::Planned { fetch_bytes, .. } => self.total = *fetch_bytes,
            Event::LayerStarted { blob, compressed_size, .. } => {
                self.running
                    .insert(blob.clone(), RunningLayer { compressed_size: *compressed_size, received: 0 });
            }
            Event::LayerProgress { blob, received, .. } => {
                if let Some(layer) = self.running.get_mut(blob) {
                    layer.received = (*received).min(layer.compressed_size);
                }
            }
            // A blob can be committed under several chain IDs, but it was received once.
            Event::LayerCommitted { blob, .. } => {
                if let Some(layer) = self.running.remove(blob) {
                    self.settled = self.settled.saturating_add(layer.compressed_size);
                }
            }
            _ => {}
        }
    }

    /// Sets the bytes to fetch, for a build whose first events were missed.
    pub fn join(&mut self, fetch_bytes: u64) {
        self.total = fetch_bytes;
    }

    /// Returns the compressed bytes to fetch in this run.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns the compressed bytes received so far, never more than [`total`](Self::total).
    pub fn received(&self) -> u64 {
        let running: u64 = self.running.values().map(|layer| layer.received).sum();
        self.settled.saturating_add(running).min(self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_model::chain::ChainId;
    use larder_model::size::ByteSize;
    use larder_model::sizing::Admission;

    #[test]
    fn bytes_of_one_blob_count_once() {
        let blob = Digest::sha256(b"x");
        let committed = Event::LayerCommitted {
            blob: blob.clone(),
            diff_id: None,
            chain_id: ChainId::base(&blob),
            size: 1,
            entries: 1,
        };
        let mut progress = Progress::default();
        progress.observe(&Event::Planned {
            admission: Admission::new([100], ByteSize(300)),
            layers: 2,
            present: 0,
            fetch_bytes: 100,
        });
        progress.observe(&Event::LayerStarted {
            blob: blob.clone(),
            compressed_size: 60,
            images: vec![],
            from: None,
        });
        progress.observe(&Event::LayerProgress { blob: blob.clone(), received: 999, written: 0 });
        assert_eq!((progress.received(), progress.total()), (60, 100));
        progress.observe(&committed);
        progress.observe(&committed);
        assert_eq!(progress.received(), 60);
    }
}
