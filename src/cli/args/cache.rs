//! Arguments of `larder cache`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{ListOutputArgs, values};
use crate::client::address::Address;
use larder_model::image_cache::CacheName;
use larder_model::reference::ImageReference;

pub(super) const STATUS_EXAMPLES: &str = "\
Examples:
  larder ls
  larder ls -o json

The variables are those of `larder cache`.";

pub(super) const EXAMPLES: &str = "\
Examples:
  larder cache create web nginx:1.27 redis:7 --size 20GiB --wait
  larder cache ls

Variables: LARDER_HOST is the address of the daemon, LARDER_CA a file with extra
certificate authorities. Authenticate with LARDER_TOKEN, or with
LARDER_ACCESS_KEY and LARDER_SECRET_KEY; root needs neither over the Unix
socket. No configuration file is read unless --config is given.

Exit codes: those of `larder --help`. Waiting returns 0 when the cache is
Available, the code of the failure when it Failed, 64 when it was deleted, 73
when it is Unavailable, and 75 after --timeout. Waiting and events reconnect if
the daemon restarts within a minute.";

/// The daemon of a command that is its client.
#[derive(Debug, Args)]
pub(in crate::cli) struct DaemonArgs {
    /// Address of the daemon: unix:///path, http://host:port or https://host:port [default: $LARDER_HOST,
    /// then unix:///run/larder/larder.sock]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub(in crate::cli) host: Option<Address>,
    /// PEM file with extra certificate authorities [default: $LARDER_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub(in crate::cli) ca: Option<PathBuf>,
}

impl DaemonArgs {
    /// Returns `true` if a flag names the daemon.
    pub(in crate::cli) fn is_named(&self) -> bool {
        self.host.is_some()
    }
}

/// Arguments of `larder ls`.
#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    #[command(flatten)]
    pub(in crate::cli) daemon: DaemonArgs,
    #[command(flatten)]
    pub(in crate::cli) output: ListOutputArgs,
}

/// Arguments of `larder cache`: the daemon's address, the output format and the subcommand.
#[derive(Debug, Args)]
pub(in crate::cli) struct CacheArgs {
    #[command(flatten)]
    pub(in crate::cli) daemon: DaemonArgs,
    #[command(flatten)]
    pub(in crate::cli) output: ListOutputArgs,
    /// Subcommand of `larder cache`
    #[command(subcommand)]
    pub(in crate::cli) command: CacheCommand,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum CacheCommand {
    /// Create an image cache
    Create {
        #[command(flatten)]
        order: CreateArgs,
        /// Wait until it is Available, or print why it is not
        #[arg(long)]
        wait: bool,
    },
    /// Create an image cache from an archive or a sealed volume on this host, without a registry
    ///
    /// SOURCE is an archive or layout that `larder import` accepts, or a volume that `larder verify` accepts
    /// (directory, disk image or device). Disk images and devices are mounted on this host, which requires
    /// root. The content is sent to the daemon as one tar. Imported caches cannot be refreshed. Exits with 73
    /// if it does not fit.
    Import {
        #[command(flatten)]
        import: CacheImport,
        /// Wait until it is Available, or print why it is not
        #[arg(long)]
        wait: bool,
    },
    /// List image caches
    Ls {
        /// List only the image cache with this name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// Show an image cache with its images and layers
    Show {
        /// ID or name of the image cache
        cache: String,
    },
    /// Write a page about an image cache to a file, with the timeline of its build
    Report {
        /// ID or name of the image cache
        cache: String,
        /// HTML file. It loads nothing else, so it can be sent
        #[arg(long, value_name = "FILE")]
        html: PathBuf,
    },
    /// Delete image caches
    Rm {
        /// IDs or names of the image caches
        #[arg(required = true, value_name = "CACHE")]
        caches: Vec<String>,
        /// Wait until they are deleted
        #[arg(long)]
        wait: bool,
    },
    /// Wait until image caches are Available
    Wait {
        /// IDs or names of the image caches
        #[arg(required = true, value_name = "CACHE")]
        caches: Vec<String>,
        /// Maximum time for each, for example 90s, 30m or 2h [default: no limit]
        #[arg(long, value_name = "TIME", value_parser = values::duration)]
        timeout: Option<Duration>,
    },
    /// Print the events of an image cache until it reaches a final status
    Events {
        /// ID or name of the image cache
        cache: String,
    },
    /// Resolve the tags again and replace the content once the new volume is sealed
    Refresh {
        /// ID or name of the image cache
        cache: String,
        /// Wait until the refresh is done
        #[arg(long)]
        wait: bool,
    },
    /// List the sealed volumes of an image cache: the served one, and replaced ones that are still in use
    Snapshots {
        /// ID or name of the image cache
        cache: String,
    },
    /// Cancel a build or a refresh
    Cancel {
        /// ID or name of the image cache
        cache: String,
    },
    /// Find the Available image cache that contains most of the given images
    Match {
        /// Images of the workload
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<ImageReference>,
    },
    /// Show what a create would download and whether it fits (dry run)
    Plan(PlanArgs),
}

/// The content of a new image cache, and where it is built.
#[derive(Debug, Args)]
pub(in crate::cli) struct PlanArgs {
    /// Images, 1 to 20
    #[arg(required = true, value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Size of the volume, 20GiB to 400GiB
    #[arg(long, default_value = "20GiB", value_parser = values::gib, value_name = "SIZE")]
    pub(in crate::cli) size: u32,
    /// UID of the cluster that builds it, as in the daemon's configuration
    #[arg(long, default_value = "local", value_name = "UID")]
    pub(in crate::cli) cluster: String,
    /// Pull secret as namespace:name; repeatable
    #[arg(long = "pull-secret", value_name = "NAMESPACE:NAME")]
    pub(in crate::cli) pull_secrets: Vec<String>,
}

/// Parameters of a new image cache.
#[derive(Debug, Args)]
pub(in crate::cli) struct CreateArgs {
    /// Name: 1 to 128 of a-z 0-9 -, starting with a letter
    pub(in crate::cli) name: CacheName,
    #[command(flatten)]
    pub(in crate::cli) content: PlanArgs,
    /// Days until it expires; 0 means never
    #[arg(long, default_value_t = 0, value_name = "DAYS")]
    pub(in crate::cli) retention_days: u32,
    /// Repeating the request with the same key returns the first result instead of creating a second cache
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) idempotency_key: Option<String>,
}

/// Parameters of an image cache whose images are uploaded.
#[derive(Debug, Args)]
pub(in crate::cli) struct CacheImport {
    /// Name: 1 to 128 of a-z 0-9 -, starting with a letter
    pub(in crate::cli) name: CacheName,
    /// Archive, layout or sealed volume; - reads an archive from standard input
    pub(in crate::cli) source: PathBuf,
    /// Import only this image; repeatable. Also names an image that has no name [default: all images, 1 to
    /// 20]
    #[arg(long = "image", value_name = "IMAGE")]
    pub(in crate::cli) images: Vec<ImageReference>,
    /// Size of the volume, 20GiB to 400GiB; needs three times the size of the layers in the archive
    #[arg(long, default_value = "20GiB", value_parser = values::gib, value_name = "SIZE")]
    pub(in crate::cli) size: u32,
    /// Days until it expires; 0 means never
    #[arg(long, default_value_t = 0, value_name = "DAYS")]
    pub(in crate::cli) retention_days: u32,
    /// UID of the cluster, as in the daemon's configuration
    #[arg(long, default_value = "local", value_name = "UID")]
    pub(in crate::cli) cluster: String,
    /// Repeating the import of the same archive with the same key returns the first result
    #[arg(long, value_name = "TEXT")]
    pub(in crate::cli) idempotency_key: Option<String>,
}
