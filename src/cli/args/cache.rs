//! `larder cache`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::client::address::Address;
use larder_model::image_cache::CacheName;
use larder_model::reference::ImageReference;

pub(super) const EXAMPLES: &str = "\
Examples:
  larder cache create web nginx:1.27 redis:7 --size 20 --wait
  larder cache import app images.tar --wait
  larder cache ls
  larder cache show web
  larder cache events web --json
  LARDER_HOST=https://larder.example.com LARDER_TOKEN=… larder cache match nginx:1.27

Variables: LARDER_HOST says where the daemon is, LARDER_CA names extra authorities. LARDER_TOKEN, or LARDER_ACCESS_KEY
with LARDER_SECRET_KEY, says who you are; over the Unix socket root needs neither. No configuration file is read unless
--config names one.

Exit codes: those of `larder --help`. Waiting ends with 0 when the cache is Available, with the code of the failure when
it Failed, with 64 when it was deleted, with 73 when it is Unavailable and with 75 when --timeout is over. Waiting and
events go on over a restart of the daemon that takes less than a minute.";

/// `larder cache`: which daemon, and what of it.
#[derive(Debug, Args)]
pub(in crate::cli) struct CacheArgs {
    /// Where the daemon is: unix:///path, http://host:port or https://host:port
    /// [default: $LARDER_HOST, then unix:///run/larder/larder.sock]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(in crate::cli) host: Option<Address>,
    /// File with extra certificate authorities, PEM [default: $LARDER_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(in crate::cli) ca: Option<PathBuf>,
    /// Print the daemon's JSON instead
    #[arg(long, global = true)]
    pub(in crate::cli) json: bool,
    /// What to do
    #[command(subcommand)]
    pub(in crate::cli) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum CacheCommand {
    /// Order an image cache
    Create {
        #[command(flatten)]
        order: CacheOrder,
        /// Wait until it is Available, or why it is not
        #[arg(long)]
        wait: bool,
    },
    /// Make an image cache of an archive or a sealed volume of this host; no registry is asked
    ///
    /// SOURCE is an archive or layout as `larder import` takes it, or a volume as `larder verify` takes it (directory, image of a
    /// disk, device); an image and a device are mounted here, which takes root. It is sent to the daemon as one tar. The cache
    /// has what SOURCE has at that moment: it cannot be refreshed. Exits with 73 if it does not fit.
    Import {
        #[command(flatten)]
        import: CacheImport,
        /// Wait until it is Available, or why it is not
        #[arg(long)]
        wait: bool,
    },
    /// List image caches
    Ls {
        /// Only the one of this name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Show an image cache with its images and layers
    Show {
        /// ID or name
        cache: String,
    },
    /// Delete image caches
    Rm {
        /// IDs or names
        #[arg(required = true, value_name = "CACHE")]
        caches: Vec<String>,
        /// Wait until they are gone
        #[arg(long)]
        wait: bool,
    },
    /// Wait until image caches are Available
    Wait {
        /// IDs or names
        #[arg(required = true, value_name = "CACHE")]
        caches: Vec<String>,
        /// Most time for each, as in 90s, 30m or 2h [default: no limit]
        #[arg(long, value_name = "TIME", value_parser = duration)]
        timeout: Option<Duration>,
    },
    /// Print what happens to an image cache until it is settled
    Events {
        /// ID or name
        cache: String,
    },
    /// Resolve the tags again and replace the content when the new one is sealed
    Refresh {
        /// ID or name
        cache: String,
        /// Wait until it is
        #[arg(long)]
        wait: bool,
    },
    /// List the sealed volumes of an image cache: what is served, and what a refresh replaced and somebody still uses
    Snapshots {
        /// ID or name
        cache: String,
    },
    /// Give up a build or a refresh
    Cancel {
        /// ID or name
        cache: String,
    },
    /// Name the Available image cache that serves a workload best
    Match {
        /// The images of the workload
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<ImageReference>,
    },
    /// Say what a create would fetch and whether it fits; keeps nothing
    Plan {
        #[command(flatten)]
        order: CacheOrder,
    },
}

/// An order for the daemon.
#[derive(Debug, Args)]
pub(in crate::cli) struct CacheOrder {
    /// Name: 1 to 128 of a-z 0-9 -, a letter first
    pub(in crate::cli) name: CacheName,
    /// Images, 1 to 20
    #[arg(required = true, value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Size of the volume in GiB, 20 to 400
    #[arg(long, default_value_t = 20, value_name = "GIB")]
    pub(in crate::cli) size: u32,
    /// Days until it expires; 0 is never
    #[arg(long, default_value_t = 0, value_name = "DAYS")]
    pub(in crate::cli) retention_days: u32,
    /// UID of the cluster that builds it, as the daemon's configuration names it
    #[arg(long, default_value = "local", value_name = "UID")]
    pub(in crate::cli) cluster: String,
    /// Pull secret as namespace:name; repeatable
    #[arg(long = "pull-secret", value_name = "NAMESPACE:NAME")]
    pub(in crate::cli) pull_secrets: Vec<String>,
    /// A text of yours that makes a repeated create give the first answer
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) idempotency_key: Option<String>,
}

/// An order whose images are sent.
#[derive(Debug, Args)]
pub(in crate::cli) struct CacheImport {
    /// Name: 1 to 128 of a-z 0-9 -, a letter first
    pub(in crate::cli) name: CacheName,
    /// Archive, layout or sealed volume; - for an archive on standard input
    pub(in crate::cli) source: PathBuf,
    /// Only this image; repeatable. Also what to call an image that has no name [default: all images, 1 to 20]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Size of the volume in GiB, 20 to 400; three times the layers as they are in the archive
    #[arg(long, default_value_t = 20, value_name = "GIB")]
    pub(in crate::cli) size: u32,
    /// Days until it expires; 0 is never
    #[arg(long, default_value_t = 0, value_name = "DAYS")]
    pub(in crate::cli) retention_days: u32,
    /// UID of the cluster, as the daemon's configuration names it
    #[arg(long, default_value = "local", value_name = "UID")]
    pub(in crate::cli) cluster: String,
    /// A text of yours that makes a repeated import of the same archive give the first answer
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) idempotency_key: Option<String>,
}

/// `90s`, `30m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || "not a time: want a number and s, m or h, as in 30m".to_owned();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        _ => return Err(refuse()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| refuse())?;
    Ok(Duration::from_secs(u64::from(number) * unit))
}
