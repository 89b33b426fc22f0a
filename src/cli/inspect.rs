//! `larder inspect`: what is on a sealed volume.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::args::InspectArgs;
use super::exit;
use super::output::stdout;
use crate::model::chain::ChainId;
use crate::model::class::Class;
use crate::model::escape::escape;
use crate::model::seal::{CacheManifest, Layer};
use crate::model::size::ByteSize;
use crate::telemetry::Console;
use crate::volume::disk;

/// Most paths listed of one kind; `--json` has them all.
const LISTED: usize = 10;

/// Runs the command and answers its exit code. A volume that is not sealed is a conflict, exit code 73.
pub(super) fn run(args: &InspectArgs, console: &Console) -> u8 {
    let entered = match disk::enter(&args.volume) {
        Ok(entered) => entered,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let sealed = match crate::volume::seal::read(entered.path()) {
        Ok(sealed) => sealed,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let text = if args.json {
        // The digest covers compact JSON in field order, so this prints the file as it is on the volume.
        match serde_json::to_string(&sealed) {
            Ok(json) => json + "\n",
            Err(e) => return exit::fail(console, Class::Internal, &format!("writing cache.json: {e}")),
        }
    } else {
        text(&sealed)
    };
    stdout::print(console, &text)
}

fn text(sealed: &CacheManifest) -> String {
    let content = &sealed.content;
    let mut users: HashMap<&ChainId, usize> = HashMap::new();
    for chain_id in content.images.iter().flat_map(|image| &image.chain) {
        *users.entry(chain_id).or_default() += 1;
    }
    let mut out = String::new();
    let totals = &content.totals;
    let _ = writeln!(
        out,
        "{} images, {} layers, {} entries, {} unpacked from {}, cap {}",
        content.images.len(),
        totals.layers,
        totals.entries,
        ByteSize(totals.size),
        ByteSize(totals.compressed_size),
        content.size
    );
    let tar_split = if content.tar_split { "kept" } else { "none: verify and export refuse" };
    let _ = writeln!(out, "sealed by larder {}, tar-split {tar_split}", escape(&content.larder));
    let _ = writeln!(out, "cache.json {}\n", sealed.digest);
    for image in &content.images {
        let _ = writeln!(out, "{}", escape(&image.reference));
        let _ = writeln!(out, "  name      {}", escape(&image.name));
        let _ = writeln!(out, "  manifest  {}", image.manifest);
        let _ = writeln!(out, "  config    {}", image.config);
        let _ = writeln!(out, "  platform  {}", escape(&image.platform.to_string()));
        for chain_id in &image.chain {
            let _ = writeln!(out, "  layer     {chain_id}");
        }
    }
    out.push('\n');
    for layer in &content.layers {
        write_layer(&mut out, layer, users.get(&layer.chain_id).copied().unwrap_or(0));
    }
    out
}

fn write_layer(out: &mut String, layer: &Layer, users: usize) {
    let (size, compressed) = (ByteSize(layer.size), ByteSize(layer.compressed_size));
    let shared = if users > 1 { format!(", shared by {users} images") } else { String::new() };
    let _ = writeln!(out, "layer {}", layer.chain_id);
    let _ = writeln!(out, "  {size} from {compressed}, {} entries{shared}", layer.entries);
    let _ = writeln!(out, "  diff ID   {}", layer.diff_id);
    let _ = writeln!(out, "  blob      {}", layer.blob);
    let settled = &layer.settled;
    write_paths(out, "inherited", settled.inherited.iter().cloned());
    write_paths(out, "opaque as whiteouts", settled.opaque_as_whiteouts.iter().cloned());
    write_paths(out, "copied up", settled.copied_up.iter().cloned());
    write_paths(out, "lost", layer.lost.iter().map(|lost| format!("{}: {}", lost.path, lost.what)));
}

fn write_paths(out: &mut String, what: &str, paths: impl ExactSizeIterator<Item = String>) {
    let count = paths.len();
    if count == 0 {
        return;
    }
    let _ = writeln!(out, "  {what} ({count})");
    for path in paths.take(LISTED) {
        let _ = writeln!(out, "    {}", escape(&path));
    }
    if count > LISTED {
        let _ = writeln!(out, "    … {} more, see --json", count - LISTED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_escaped() {
        let mut out = String::new();
        write_paths(&mut out, "lost", vec!["a\nb".to_owned(); 12].into_iter());
        assert!(out.starts_with("  lost (12)\n    a\\u{a}b\n"), "{out}");
        assert!(out.ends_with("… 2 more, see --json\n"), "{out}");
        assert_eq!(out.lines().count(), 12);
    }
}
