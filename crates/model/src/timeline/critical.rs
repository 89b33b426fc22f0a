//! The critical path: the steps that determined the duration of a build, from its end to its start.

use serde::{Deserialize, Serialize};

use super::{LayerTimeline, Span, Timeline};

/// A step of the critical path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The stage of the build.
    pub stage: Stage,
    /// Index in [`Timeline::layers`]. `None` for a stage of the whole build.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<usize>,
    /// Period of the step.
    #[serde(flatten)]
    pub span: Span,
}

/// A stage of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Resolution of the images.
    Resolve,
    /// Transfer of a layer that was slower than its extraction.
    Network,
    /// Extraction: decompression, hashes and writes, during the transfer or after it.
    Unpack,
    /// Wait of a layer: until it can start, or until it can be committed.
    Wait,
    /// Commit of a layer.
    Commit,
    /// Flush, and the seal of the volume.
    Seal,
}

impl Stage {
    /// All stages, in the order of a build.
    pub const ALL: [Stage; 6] =
        [Stage::Resolve, Stage::Network, Stage::Unpack, Stage::Wait, Stage::Commit, Stage::Seal];

    /// Returns the name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Resolve => "resolve",
            Stage::Network => "network",
            Stage::Unpack => "unpack",
            Stage::Wait => "wait",
            Stage::Commit => "commit",
            Stage::Seal => "seal",
        }
    }
}

impl Timeline {
    /// Returns the steps that determined the duration, in order of time. Each starts at the end of the one
    /// before it.
    pub fn critical_path(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut until = self.elapsed_ms;
        if let Some(seal) = self.seal.filter(|seal| seal.start_ms < until) {
            steps.push(Step { stage: Stage::Seal, layer: None, span: Span { end_ms: until, ..seal } });
            until = seal.start_ms;
        }
        // The layer that ended last before `until` delayed what came after it. Its own start was delayed by
        // the layer that ended last before that, because it waited for a slot or for its parent.
        let mut left: Vec<usize> = (0..self.layers.len()).collect();
        while let Some(at) = latest(&self.layers, &left, until) {
            left.retain(|other| *other != at);
            for (stage, span) in stages(&self.layers[at]) {
                let mut span = Span { start_ms: span.start_ms, end_ms: span.end_ms.min(until) };
                // A layer that ended in the wait is a parent or was committed first. The wait is part of the
                // path only after it, and what this layer did before the wait is not.
                let parent = (stage == Stage::Wait).then(|| latest(&self.layers, &left, span.end_ms));
                let ended = parent.flatten().map(|parent| self.layers[parent].end_ms());
                let waited_for = ended.filter(|ended| *ended > span.start_ms);
                span.start_ms = waited_for.unwrap_or(span.start_ms);
                if span.start_ms < span.end_ms {
                    add(&mut steps, Step { stage, layer: Some(at), span });
                    until = span.start_ms;
                }
                if waited_for.is_some() {
                    break;
                }
            }
        }
        let resolved = self.images.iter().map(|image| image.resolve.end_ms).max();
        if let Some(end_ms) = resolved.map(|end| end.min(until)).filter(|end| *end > 0) {
            add(&mut steps, Step { stage: Stage::Resolve, layer: None, span: Span { start_ms: 0, end_ms } });
        }
        steps.reverse();
        steps
    }

    /// Returns the time that each stage takes on the critical path, milliseconds, the longest first.
    pub fn bound_by(&self) -> Vec<(Stage, u64)> {
        let mut totals: Vec<(Stage, u64)> = Vec::new();
        for step in self.critical_path() {
            match totals.iter_mut().find(|(stage, _)| *stage == step.stage) {
                Some((_, total)) => *total += step.span.duration_ms(),
                None => totals.push((step.stage, step.span.duration_ms())),
            }
        }
        totals.sort_by_key(|(stage, total)| (std::cmp::Reverse(*total), *stage));
        totals
    }
}

/// Adds a step before the others. A gap between them is a wait, for example for another build that fetches
/// the same layer.
fn add(steps: &mut Vec<Step>, step: Step) {
    let next = steps.last().filter(|next| step.span.end_ms < next.span.start_ms);
    if let Some(next) = next {
        let span = Span { start_ms: step.span.end_ms, end_ms: next.span.start_ms };
        steps.push(Step { stage: Stage::Wait, layer: next.layer, span });
    }
    steps.push(step);
}

/// Returns the layer among `left` that ended last, at `until` at the latest.
fn latest(layers: &[LayerTimeline], left: &[usize], until: u64) -> Option<usize> {
    let ended = left.iter().copied().filter(|at| {
        let end = layers[*at].end_ms();
        end > 0 && end <= until
    });
    ended.max_by_key(|at| layers[*at].end_ms())
}

/// Returns the stages of a layer, the last one first.
fn stages(layer: &LayerTimeline) -> impl Iterator<Item = (Stage, Span)> {
    let transfer = if layer.waits_for_network() { Stage::Network } else { Stage::Unpack };
    let stages = [
        layer.commit.map(|span| (Stage::Commit, span)),
        layer.wait.map(|span| (Stage::Wait, span)),
        layer.unpack.map(|span| (Stage::Unpack, span)),
        layer.download.map(|span| (transfer, span)),
    ];
    stages.into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{committed, extracted, recorded, sealed, started};
    use super::*;

    #[test]
    fn the_slowest_chain_of_steps() {
        // `b` starts when `a` is done, as with one slot. `c` is short and irrelevant.
        let timeline = recorded([
            (0, started("c")),
            (0, started("a")),
            (40, extracted("c", 30, 0)),
            (50, committed("c", 10)),
            (100, extracted("a", 90, 80)),
            (110, committed("a", 10)),
            (110, started("b")),
            (310, extracted("b", 100, 10)),
            (330, committed("b", 15)),
            (400, sealed()),
        ]);
        let path: Vec<_> = timeline
            .critical_path()
            .into_iter()
            .map(|step| (step.stage, step.layer, step.span.start_ms, step.span.end_ms))
            .collect();
        assert_eq!(
            path,
            [
                (Stage::Network, Some(1), 0, 90),
                (Stage::Unpack, Some(1), 90, 100),
                (Stage::Commit, Some(1), 100, 110),
                (Stage::Unpack, Some(2), 110, 210),
                (Stage::Unpack, Some(2), 210, 310),
                (Stage::Wait, Some(2), 310, 315),
                (Stage::Commit, Some(2), 315, 330),
                (Stage::Seal, None, 330, 400),
            ]
        );
        assert_eq!(
            timeline.bound_by(),
            [
                (Stage::Unpack, 210),
                (Stage::Network, 90),
                (Stage::Seal, 70),
                (Stage::Commit, 25),
                (Stage::Wait, 5)
            ]
        );
    }

    #[test]
    fn a_wait_leads_to_the_layer_that_was_waited_for() {
        let timeline = recorded([
            (0, started("parent")),
            (0, started("child")),
            (100, extracted("child", 90, 80)),
            (400, extracted("parent", 390, 380)),
            (410, committed("parent", 10)),
            (430, committed("child", 18)),
            (450, sealed()),
        ]);
        let path: Vec<_> = timeline
            .critical_path()
            .into_iter()
            .map(|step| (step.stage, step.layer, step.span.start_ms))
            .collect();
        assert_eq!(
            path,
            [
                (Stage::Network, Some(0), 0),
                (Stage::Unpack, Some(0), 390),
                (Stage::Commit, Some(0), 400),
                (Stage::Wait, Some(1), 410),
                (Stage::Commit, Some(1), 412),
                (Stage::Seal, None, 430),
            ]
        );
        let wait = Span { start_ms: 100, end_ms: 412 };
        assert_eq!(timeline.layers[1].wait, Some(wait));
    }

    #[test]
    fn steps_follow_each_other() {
        let timeline = recorded([
            (5, started("a")),
            (6, started("b")),
            (300, extracted("a", 290, 280)),
            (310, extracted("b", 290, 280)),
            (320, committed("b", 10)),
            (330, committed("a", 10)),
        ]);
        let path = timeline.critical_path();
        for pair in path.windows(2) {
            assert!(pair[0].span.end_ms == pair[1].span.start_ms, "{path:?}");
        }
    }

    #[test]
    fn a_layer_that_starts_late_waits() {
        // `a` waits until another build has fetched it. `b` is committed at once after it, in no time.
        let resolved = super::super::tests::resolved("app:1");
        let timeline = recorded([
            (0, started("c")),
            (50, resolved),
            (60, started("b")),
            (100, extracted("b", 30, 30)),
            (600, started("a")),
            (640, extracted("a", 40, 0)),
            (650, committed("a", 10)),
            (650, committed("b", 0)),
            (700, sealed()),
        ]);
        let path: Vec<_> =
            timeline.critical_path().into_iter().map(|step| (step.stage, step.span.start_ms)).collect();
        assert_eq!(
            path,
            [
                (Stage::Resolve, 0),
                (Stage::Wait, 50),
                (Stage::Unpack, 600),
                (Stage::Commit, 640),
                (Stage::Seal, 650)
            ]
        );
    }
}
