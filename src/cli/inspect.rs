//! `larder inspect`: shows the images and layers of a sealed volume.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::args::InspectArgs;
use super::output::stdout;
use super::{exit, sandbox};
use crate::prefetch;
use crate::prefetch::placement::{self, Placement};
use crate::telemetry::Console;
use crate::volume::{self, disk, seal};
use larder_model::chain::ChainId;
use larder_model::class::Class;
use larder_model::count::counted;
use larder_model::escape::escape;
use larder_model::io_error::Context as _;
use larder_model::job::LayerFormat;
use larder_model::key::{KeyId, PublicKey};
use larder_model::seal::{CacheManifest, Image, Layer, LayerImage};
use larder_model::size::ByteSize;
use larder_model::trust::{SealSignature, Statement};
use larder_sys::Dir;

/// Maximum number of listed paths of each kind; `--json` lists all of them.
const LISTED: usize = 10;

/// Runs the command and returns its exit code. A volume that is not sealed is a conflict, exit code 73.
pub(super) fn run(args: &InspectArgs, console: &Console) -> u8 {
    let entered = match disk::enter(&args.volume) {
        Ok(entered) => entered,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let _confined = match sandbox::reader(entered.path()) {
        Ok(confined) => confined,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let (sealed, signature) = match read(entered.path()) {
        Ok(read) => read,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let placement = match args.extents.then(|| placement(entered.path(), &sealed)).transpose() {
        Ok(placement) => placement,
        Err(error) => return exit::fail(console, error.class(), &error.to_string()),
    };
    let text = if args.output.is_json() {
        // The digest covers compact JSON in field order, so `cache.json` is printed exactly as on the volume,
        // without the added fields.
        let document =
            Document { sealed: &sealed, signature: signature.as_ref(), placement: placement.as_ref() };
        match serde_json::to_string(&document) {
            Ok(json) => json + "\n",
            Err(e) => return exit::fail(console, Class::Internal, &format!("writing cache.json: {e}")),
        }
    } else {
        text(&sealed, signature.as_ref(), placement.as_ref())
    };
    stdout::print(console, &text)
}

/// Reads the seal of the volume and its signature, if there is one.
fn read(volume: &Path) -> Result<(CacheManifest, Option<Signature>), volume::Error> {
    let shown = volume.display().to_string();
    let root = Dir::open(volume).context("opening", volume.display())?;
    let files = seal::Files::read(&root, &shown)?;
    let sealed = seal::parse(&files.cache_json, &shown)?;
    let signature = files.signature.map(|json| match SealSignature::parse(&json) {
        Ok(signature) => Signature {
            key: Some(signature.key),
            key_id: Some(signature.key.id()),
            holds: signature.holds(&files.cache_json),
            stated: signature.statement().map(Stated::from),
        },
        Err(_) => Signature { key: None, key_id: None, holds: false, stated: None },
    });
    Ok((sealed, signature))
}

/// The signature of the volume and whether it is valid. Use `verify --trust` to check the key.
#[derive(Serialize)]
struct Signature {
    /// `None` if the signature file cannot be parsed.
    key: Option<PublicKey>,
    key_id: Option<KeyId>,
    holds: bool,
    #[serde(flatten)]
    stated: Option<Stated>,
}

/// The signed statement about the volume.
#[derive(Serialize)]
struct Stated {
    name: Option<String>,
    created: DateTime<Utc>,
    sequence: u64,
}

impl From<Statement> for Stated {
    fn from(statement: Statement) -> Self {
        let Statement { name, created, sequence } = statement;
        Stated { name, created, sequence }
    }
}

/// `cache.json` with the signature and the measured placement.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    sealed: &'a CacheManifest,
    #[serde(skip_serializing_if = "Option::is_none")]
    signature: Option<&'a Signature>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<&'a Placements>,
}

/// Fragmentation of the layers on the disk, by chain ID and in total.
#[derive(Serialize)]
struct Placements {
    total: Placed,
    layers: BTreeMap<ChainId, Placed>,
}

#[derive(Clone, Copy, Serialize)]
struct Placed {
    #[serde(flatten)]
    placement: Placement,
    extents_per_gib: u64,
    pieces_per_gib: u64,
}

impl From<Placement> for Placed {
    fn from(placement: Placement) -> Self {
        let (extents_per_gib, pieces_per_gib) = (placement.extents_per_gib(), placement.pieces_per_gib());
        Placed { placement, extents_per_gib, pieces_per_gib }
    }
}

fn placement(volume: &Path, sealed: &CacheManifest) -> Result<Placements, prefetch::Error> {
    let root = Dir::open(volume).map_err(|e| prefetch::Error::reading(volume.as_os_str().as_bytes(), e))?;
    let (layers, total) = placement::of(&root, &sealed.content)?;
    let layers = layers.into_iter().map(|(chain_id, placement)| (chain_id, placement.into()));
    Ok(Placements { total: total.into(), layers: layers.collect() })
}

fn text(sealed: &CacheManifest, signature: Option<&Signature>, placement: Option<&Placements>) -> String {
    let content = &sealed.content;
    let mut users: HashMap<&ChainId, usize> = HashMap::new();
    for chain_id in content.images.iter().flat_map(|image| &image.chain) {
        *users.entry(chain_id).or_default() += 1;
    }
    let mut out = String::new();
    write_summary(&mut out, sealed);
    if let Some(signature) = signature {
        write_signature(&mut out, signature);
    }
    if let Some(placement) = placement {
        let _ = writeln!(out, "on disk {}", placed(&placement.total));
    }
    out.push('\n');
    for image in &content.images {
        write_image(&mut out, image, &content.layers);
    }
    out.push('\n');
    for layer in &content.layers {
        write_layer(&mut out, layer, users.get(&layer.chain_id).copied().unwrap_or(0));
        if let Some(placement) = placement.and_then(|placement| placement.layers.get(&layer.chain_id)) {
            let _ = writeln!(out, "  on disk   {}", placed(placement));
        }
    }
    out
}

fn write_summary(out: &mut String, sealed: &CacheManifest) {
    let content = &sealed.content;
    let totals = &content.totals;
    let _ = writeln!(
        out,
        "{}, {}, {}, {} unpacked from {}, cap {}",
        counted(content.images.len(), "image"),
        counted(totals.layers, "layer"),
        counted(totals.entries, "entry"),
        ByteSize(totals.size),
        ByteSize(totals.compressed_size),
        content.size
    );
    let format = match content.layer_format {
        LayerFormat::Overlay => "directories",
        LayerFormat::Erofs => "EROFS images",
    };
    let _ = writeln!(out, "layers are {format}");
    let tar_split = if content.tar_split { "kept" } else { "none: verify and export reject this volume" };
    let _ = writeln!(out, "sealed by larder {}, tar-split {tar_split}", escape(&content.larder));
    let _ = writeln!(out, "cache.json {}", sealed.digest);
}

fn write_signature(out: &mut String, signature: &Signature) {
    let Signature { key_id, holds, stated, .. } = signature;
    let holds = if *holds { "" } else { ": THE SIGNATURE IS INVALID" };
    let unknown = || "an unknown key: cache.json.sig cannot be parsed".to_owned();
    let key = key_id.as_ref().map_or_else(unknown, KeyId::to_string);
    let _ = writeln!(out, "signed by {key}{holds}");
    if let Some(Stated { name, created, sequence }) = stated {
        let name = name.as_ref().map_or("no name".to_owned(), |name| format!("the name {}", escape(name)));
        let created = created.to_rfc3339_opts(SecondsFormat::Secs, true);
        let _ = writeln!(out, "signed for {name} at {created}, number {sequence}");
    }
}

fn write_image(out: &mut String, image: &Image, layers: &[Layer]) {
    let _ = writeln!(out, "{}", escape(&image.reference));
    let _ = writeln!(out, "  name      {}", escape(&image.name));
    let _ = writeln!(out, "  manifest  {}", image.manifest);
    let _ = writeln!(out, "  config    {}", image.config);
    let _ = writeln!(out, "  platform  {}", escape(&image.platform.to_string()));
    let mut differs = 0;
    for chain_id in &image.chain {
        let _ = writeln!(out, "  layer     {chain_id}");
        let layer = layers.iter().find(|layer| layer.chain_id == *chain_id);
        differs += usize::from(layer.is_some_and(has_fixup));
    }
    if differs > 0 {
        let _ =
            writeln!(out, "  diff IDs alone are not enough: {differs} of its layers depend on lower layers");
    }
}

/// Formats a placement, such as `12 files (1 fragmented), 3.20 MiB in 15 extents (4800 per GiB) and 2 pieces
/// (640 per GiB)`.
fn placed(placed: &Placed) -> String {
    let Placement { files, fragmented, bytes, extents, pieces, unknown } = placed.placement;
    let mut text = format!(
        "{files} files ({fragmented} fragmented), {} in {extents} extents ({} per GiB) and {pieces} pieces ({} per GiB)",
        ByteSize(bytes),
        placed.extents_per_gib,
        placed.pieces_per_gib
    );
    if unknown > 0 {
        let _ = write!(text, "; unknown for {unknown} files");
    }
    text
}

fn write_layer(out: &mut String, layer: &Layer, users: usize) {
    let (size, compressed) = (ByteSize(layer.size), ByteSize(layer.compressed_size));
    let shared = if users > 1 { format!(", shared by {users} images") } else { String::new() };
    let _ = writeln!(out, "layer {}", layer.chain_id);
    let entries = counted(layer.entries, "entry");
    let _ = writeln!(out, "  {size} from {compressed}, {entries}{shared}");
    let _ = writeln!(out, "  diff ID   {}", layer.diff_id);
    let _ = writeln!(out, "  blob      {}", layer.blob);
    if let Some(LayerImage { size, fixup_size, verity }) = &layer.image {
        let over = fixup_size.map(|size| format!(", plus a fixup image of {}", ByteSize(size)));
        let _ = writeln!(out, "  image     {}{}", ByteSize(*size), over.unwrap_or_default());
        if let Some(verity) = verity {
            let _ = writeln!(out, "  verity    {}", verity.root_hash);
        }
    }
    let settled = &layer.settled;
    write_paths(out, "inherited", settled.inherited.iter().cloned());
    write_paths(out, "opaque as whiteouts", settled.opaque_as_whiteouts.iter().cloned());
    write_paths(out, "copied up", settled.copied_up.iter().cloned());
    write_paths(out, "lost", layer.lost.iter().map(|lost| format!("{}: {}", lost.path, lost.what)));
}

/// Reports whether the image of the diff ID alone is incomplete without its fixup image.
fn has_fixup(layer: &Layer) -> bool {
    layer.image.as_ref().is_some_and(|image| image.fixup_size.is_some())
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
