//! One report from several runs: the median of each figure, and its spread.

use serde::{Deserialize, Serialize};

use super::{BenchReport, Elapsed, Load, Stage, approximate, over};

/// The smallest and the largest value of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// Smallest value of the runs.
    pub min: f64,
    /// Largest value of the runs.
    pub max: f64,
}

/// The spread of the times of several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Wall times of the runs, seconds.
    pub wall_seconds: Range,
    /// Processor times of the runs, seconds.
    pub processor_seconds: Range,
}

impl BenchReport {
    /// Combines the reports of runs with the same settings. Runs whose image differs from that of the first
    /// are left out, because its tag has moved. `None` if there is no run.
    pub fn of_runs(mut runs: Vec<BenchReport>, load: Option<Load>) -> Option<Self> {
        let manifest = runs.first()?.image.manifest.clone();
        runs.retain(|run| run.image.manifest == manifest);
        let mut first = runs.first()?.clone();
        let together: Vec<Elapsed> = runs.iter().map(|run| run.together).collect();
        for (at, stage) in first.stages.iter_mut().enumerate() {
            let took = runs.iter().filter_map(|run| run.stages.get(at)).map(|stage| stage.took);
            *stage = stage.with_times(&took.collect::<Vec<_>>());
        }
        for (at, layer) in first.image.layers.iter_mut().enumerate() {
            let times = runs.iter().filter_map(|run| run.image.layers.get(at));
            let mut times: Vec<u64> = times.map(|layer| layer.inflate_us).collect();
            times.sort_unstable();
            layer.inflate_us = times.get(times.len() / 2).copied().unwrap_or(layer.inflate_us);
        }
        let BenchReport { kind, image, settings, stages, .. } = first;
        let combined = BenchReport::new(kind, image, settings, stages, median(&together));
        let distance = |run: &BenchReport| (run.together.wall_seconds - combined.together.wall_seconds).abs();
        let (count, together_spread) = (runs.len(), spread(&together));
        let closest = runs.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
        let timeline = closest.and_then(|run| run.timeline);
        Some(BenchReport { runs: count, together_spread, load, timeline, ..combined })
    }
}

impl Stage {
    /// Returns the stage with the median of `times`, and their spread.
    fn with_times(&self, times: &[Elapsed]) -> Self {
        let took = median(times);
        let amount = self.bytes.or(self.entries).unwrap_or_default();
        let per_second = over(approximate(amount), took.wall_seconds);
        Stage { took, per_second, spread: spread(times), ..self.clone() }
    }
}

fn sorted(times: &[Elapsed], figure: fn(&Elapsed) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = times.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Returns the median of each figure. Of an even number, it is the mean of the two in the middle.
fn median(times: &[Elapsed]) -> Elapsed {
    let middle = |figure| {
        let values = sorted(times, figure);
        let at = |at: usize| values.get(at).copied().unwrap_or_default();
        match values.len() {
            0 => 0.0,
            count if count % 2 == 1 => at(count / 2),
            count => f64::midpoint(at(count / 2 - 1), at(count / 2)),
        }
    };
    Elapsed { wall_seconds: middle(|t| t.wall_seconds), processor_seconds: middle(|t| t.processor_seconds) }
}

/// Returns the spread of several times; `None` for a single one.
fn spread(times: &[Elapsed]) -> Option<Spread> {
    let range = |figure| match sorted(times, figure)[..] {
        [min, .., max] => Some(Range { min, max }),
        _ => None,
    };
    Some(Spread {
        wall_seconds: range(|t| t.wall_seconds)?,
        processor_seconds: range(|t| t.processor_seconds)?,
    })
}
