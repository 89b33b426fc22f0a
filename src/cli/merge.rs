//! Merges flags, job and configuration. Flags take precedence over the job, and the job over the
//! configuration.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::args::{BuildArgs, CredentialArgs, HostArgs};
use super::usage::UsageError;
use crate::builder::order::{BuildRequest, HostOverrides, ImageSource, RegistryOptions, Sharing};
use crate::builder::volume_name::VolumeName;
use crate::config::Config;
use larder_model::job::{Job, MAX_IMAGES, NetworkAccess};
use larder_model::platform::Platform;
use larder_model::reference::ImageReference;
use larder_model::size::{ByteSize, VolumeSize};

/// Maximum size of a job, bytes. 256 references of 1024 bytes are a quarter of it.
const MAX_JOB: u64 = 1 << 20;

/// The purpose of a request. A plan needs neither a volume nor a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Build,
    Plan,
}

/// Reads the job given by the flags. `None` if there is none.
pub(super) fn read_job(args: &BuildArgs) -> Result<Option<Vec<u8>>, UsageError> {
    let Some(path) = &args.job else { return Ok(None) };
    let shown = || path.display().to_string();
    let text =
        if path == Path::new("-") { limited(io::stdin().lock()) } else { File::open(path).and_then(limited) };
    let text = text.map_err(|source| UsageError::ReadJob { path: shown(), source })?;
    if text.len() as u64 > MAX_JOB {
        return Err(UsageError::JobTooLarge { path: shown(), limit: MAX_JOB });
    }
    Ok(Some(text))
}

fn limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(MAX_JOB + 1).read_to_end(&mut text)?;
    Ok(text)
}

/// Returns the path of the result file. Also works for a job that is otherwise malformed, so that its owner
/// gets the error.
pub(super) fn result_file(args: &BuildArgs, job: Option<&[u8]>) -> Option<PathBuf> {
    let of_job = || {
        let job: serde_json::Value = serde_json::from_slice(job?).ok()?;
        job.get("result_file")?.as_str().map(PathBuf::from)
    };
    args.options.result_file.clone().or_else(of_job)
}

/// The rules of a job for its network access. There are no flags for them.
#[derive(Debug, Default)]
struct NetworkRules {
    reach: NetworkAccess,
    /// Minimum bytes per minute of each layer.
    min_layer_rate: Option<ByteSize>,
}

/// Merges flags, job and configuration into a request.
pub(super) fn build_request(
    mut args: BuildArgs,
    job: Option<&[u8]>,
    config: &Config,
    purpose: Purpose,
) -> Result<BuildRequest, UsageError> {
    let network = job.map(|text| add_job(&mut args, text)).transpose()?.unwrap_or_default();
    let BuildArgs { images, volume, options, source, .. } = args;
    let source = source.unwrap_or_default();
    check_images(&images, &source)?;
    let (volume, size) = volume_and_size(volume, options.size, &source, purpose)?;
    let volume_kind = options.volume_kind.unwrap_or_default();
    if volume_kind.is_disk() && purpose == Purpose::Build {
        check_source_for_disk(&source, size, &images)?;
    }
    let share = match (&options.share, purpose) {
        (Some(dir), Purpose::Build) => Some(sharing(dir, &volume)?),
        _ => None,
    };
    let registry = registry(args.credentials, config)?;
    let layers = options.layers;
    Ok(BuildRequest {
        images,
        volume,
        size,
        size_is_computed: size == ByteSize(0),
        sizing: options.sizing.unwrap_or(config.build.sizing),
        platform: options.platform.unwrap_or_else(Platform::host),
        volume_kind,
        layer_format_given: layers.layer_format.is_some(),
        layer_format: layers.layer_format.unwrap_or(config.build.layer_format),
        verity: layers.verity,
        tar_split: !layers.no_tar_split,
        rootless: options.rootless,
        verify_after: options.verify_after,
        concurrency: options.concurrency.map_or(config.build.concurrency, usize::from),
        share,
        sign_key: match purpose {
            Purpose::Build => options.sign_key.or_else(|| config.build.sign_key().map(Path::to_owned)),
            Purpose::Plan => None,
        },
        signer: None,
        fetcher: None,
        standard_input: None,
        supervisor: None,
        deadline: options.deadline,
        source,
        registry: RegistryOptions {
            connections_per_host: args
                .connections_per_host
                .map_or(registry.connections_per_host, usize::from),
            limit_rate: args.limit_rate,
            retries: args.retries,
            reach: network.reach,
            min_layer_rate: network.min_layer_rate,
            hosts: args.hosts.into(),
            ..registry
        },
    })
}

/// Sets the flags that are not given to the values of the job.
fn add_job(args: &mut BuildArgs, text: &[u8]) -> Result<NetworkRules, UsageError> {
    let job = Job::parse(text).map_err(|source| {
        let path = args.job.as_deref().unwrap_or(Path::new("-")).display().to_string();
        UsageError::Job { path, source }
    })?;
    if !args.images.is_empty() {
        return Err(UsageError::ImagesTwice);
    }
    args.images = job.images;
    args.source = args.source.take().or(job.source.map(ImageSource::from));
    if args.credentials.pull_secrets.is_empty() {
        args.credentials.pull_secrets = job.pull_secrets;
    }
    let options = &mut args.options;
    options.size = options.size.or(job.size);
    options.sizing = options.sizing.or(job.sizing);
    options.platform = options.platform.take().or(job.platform);
    options.volume_kind = options.volume_kind.or(job.volume_kind);
    options.deadline = options.deadline.or(job.deadline);
    let layers = &mut options.layers;
    layers.layer_format = layers.layer_format.or(job.layer_format);
    layers.verity |= job.verity == Some(true);
    layers.no_tar_split |= job.tar_split == Some(false);
    let min_layer_rate = job.min_layer_rate.filter(|rate| rate.0 > 0);
    Ok(NetworkRules { reach: job.reach, min_layer_rate })
}

fn check_images(images: &[ImageReference], source: &ImageSource) -> Result<(), UsageError> {
    match images.len() {
        0 if *source == ImageSource::Registries => Err(UsageError::NoImages),
        given if given > MAX_IMAGES => Err(UsageError::TooManyImages { given }),
        _ => Ok(()),
    }
}

/// Returns the volume and its size, which is 0 if it is computed. A plan needs neither.
fn volume_and_size(
    volume: Option<PathBuf>,
    size: Option<VolumeSize>,
    source: &ImageSource,
    purpose: Purpose,
) -> Result<(PathBuf, ByteSize), UsageError> {
    let size = match size {
        Some(VolumeSize::Given(ByteSize(0))) => return Err(UsageError::ZeroSize),
        Some(VolumeSize::Given(size)) => Some(size),
        Some(VolumeSize::Auto) => Some(ByteSize(0)),
        None => None,
    };
    match (purpose, source) {
        (Purpose::Plan, _) => Ok((volume.unwrap_or_default(), size.unwrap_or_default())),
        (Purpose::Build, ImageSource::Registries) => {
            let size = size.ok_or(UsageError::NoSize)?;
            Ok((volume.ok_or(UsageError::NoVolume)?, size))
        }
        (Purpose::Build, ImageSource::Archive { .. }) => {
            Ok((volume.ok_or(UsageError::NoVolume)?, size.unwrap_or_default()))
        }
    }
}

/// Checks that the disk for an archive can be created before the archive is read.
fn check_source_for_disk(
    source: &ImageSource,
    size: ByteSize,
    images: &[ImageReference],
) -> Result<(), UsageError> {
    let ImageSource::Archive { path, .. } = source else { return Ok(()) };
    let missing = [
        (size == ByteSize(0), "--size"),
        (images.is_empty(), "an --image for each"),
        (path == Path::new("-"), "the archive as a file"),
    ];
    match missing.into_iter().find(|(is_missing, _)| *is_missing) {
        Some((_, what)) => Err(UsageError::DiskFromArchive(what)),
        None => Ok(()),
    }
}

/// Returns the default registry settings with the given credentials.
pub(super) fn registry(credentials: CredentialArgs, config: &Config) -> Result<RegistryOptions, UsageError> {
    let CredentialArgs { auth_file, creds, docker_configs, secrets, pull_secrets } = credentials;
    let incomplete = || UsageError::IncompleteCredentials;
    let credential = creds.map(|creds| creds.credential().ok_or_else(incomplete)).transpose()?;
    if let (Some(first), None) = (pull_secrets.first(), &secrets) {
        return Err(UsageError::NoSecretsDirectory { first: first.to_string() });
    }
    Ok(RegistryOptions {
        connections_per_host: config.registry.connections_per_host,
        limit_rate: None,
        retries: None,
        credential,
        auth_file,
        docker_configs,
        user_docker_config: true,
        secrets_dir: secrets,
        pull_secrets,
        reach: NetworkAccess::Any,
        min_layer_rate: None,
        hosts: HostOverrides::default(),
    })
}

impl From<HostArgs> for HostOverrides {
    fn from(args: HostArgs) -> Self {
        let HostArgs { tls_verify, authorities, mirrors } = args;
        HostOverrides { tls_verify, ca: authorities, mirrors }
    }
}

/// Checks that the volume is in `volumes/` of the directory, whichever path is given.
fn sharing(dir: &Path, volume: &Path) -> Result<Sharing, UsageError> {
    let refused = |reason: String| UsageError::Share { dir: dir.display().to_string(), reason };
    let volumes = dir.join("volumes");
    let volumes =
        volumes.canonicalize().map_err(|e| refused(format!("resolving {}: {e}", volumes.display())))?;
    let parent = match volume.parent() {
        Some(parent) if parent == Path::new("") => Path::new("."),
        Some(parent) => parent,
        None => volume,
    };
    if !parent.canonicalize().is_ok_and(|parent| parent == volumes) {
        return Err(refused(format!("--volume {} is not in {}", volume.display(), volumes.display())));
    }
    let name = volume.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let volume = VolumeName::try_from(name).map_err(|e| refused(e.to_owned()))?;
    Ok(Sharing { dir: dir.to_owned(), volume })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::args::{Cli, Command};
    use larder_model::sizing::Sizing;

    fn args(line: &str) -> BuildArgs {
        let cli =
            Cli::try_parse_from(["larder", "build"].into_iter().chain(line.split_whitespace())).unwrap();
        match cli.command {
            Command::Build(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn merged(line: &str, job: Option<&str>) -> Result<BuildRequest, UsageError> {
        build_request(args(line), job.map(str::as_bytes), &Config::default(), Purpose::Build)
    }

    const JOB: &str = r#"{"images":["a:1"],"size":"2GiB","sizing":"warn","platform":"linux/arm64",
        "pull_secrets":["ns:one"],"deadline":"2026-11-23T18:00:00Z","tar_split":false,"result_file":"/r"}"#;

    #[test]
    fn the_job_overrides_the_configuration() {
        let order = merged("--job j --volume v --secrets s", Some(JOB)).unwrap();
        assert_eq!(order.images[0].given(), "a:1");
        assert_eq!((order.size, order.sizing), (ByteSize(2 << 30), Sizing::Warn));
        assert_eq!(order.platform.to_string(), "linux/arm64");
        assert_eq!(order.registry.pull_secrets[0].to_string(), "ns:one");
        assert!(!order.tar_split && order.deadline.is_some());
        assert_eq!(order.concurrency, Config::default().build.concurrency);
    }

    #[test]
    fn flags_override_the_job() {
        let line = "--job j --volume v --secrets s --size 3GiB --sizing enforce --platform linux/amd64 \
            --pull-secret ns:two --concurrency 7 --connections-per-host 9 --deadline 2030-01-01T00:00:00Z";
        let order = merged(line, Some(JOB)).unwrap();
        assert_eq!((order.size, order.sizing), (ByteSize(3 << 30), Sizing::Enforce));
        assert_eq!(order.platform.to_string(), "linux/amd64");
        let secrets: Vec<String> = order.registry.pull_secrets.iter().map(ToString::to_string).collect();
        assert_eq!(secrets, ["ns:two"]);
        assert_eq!((order.concurrency, order.registry.connections_per_host), (7, 9));
        assert_eq!(order.deadline.unwrap().to_rfc3339(), "2030-01-01T00:00:00+00:00");
    }

    #[test]
    fn flags_of_registries_are_parsed() {
        let line =
            "--volume v --size 1G --authfile a.json --ca ca.pem --mirror m.io --mirror r.io=http://n.io";
        let order = merged(&format!("{line} --tls-verify=false r.io/a"), None).unwrap().registry;
        assert_eq!(order.auth_file, Some("a.json".into()));
        assert_eq!((order.hosts.tls_verify, &order.hosts.ca[..]), (Some(false), &["ca.pem".into()][..]));
        let mirrors = order.hosts.mirrors.into_iter().map(|m| (m.registry, m.url));
        let named = (Some("r.io".to_owned()), "http://n.io".to_owned());
        assert_eq!(mirrors.collect::<Vec<_>>(), [(None, "m.io".to_owned()), named]);
        let verified = merged(&format!("{line} --tls-verify r.io/a"), None).unwrap().registry;
        assert_eq!(verified.hosts.tls_verify, Some(true));
    }

    #[test]
    fn missing_and_duplicate_arguments_are_rejected() {
        let error = |line: &str, job: Option<&str>| merged(line, job).unwrap_err();
        assert!(matches!(error("--volume v --size 1G", None), UsageError::NoImages));
        assert!(matches!(error("--size 1G a", None), UsageError::NoVolume));
        assert!(matches!(error("--volume v a", None), UsageError::NoSize));
        assert!(matches!(error("--volume v --size 0B a", None), UsageError::ZeroSize));
        assert!(matches!(error("--job j --volume v a", Some(JOB)), UsageError::ImagesTwice));
        assert!(matches!(error("--job j --volume v", Some(JOB)), UsageError::NoSecretsDirectory { .. }));
        assert!(matches!(error("--job j --volume v", Some("{")), UsageError::Job { .. }));
        assert_eq!(error("--volume v a", None).class().exit_code(), 64);
        let many = "a ".repeat(MAX_IMAGES + 1);
        assert!(matches!(
            error(&format!("--volume v --size 1G {many}"), None),
            UsageError::TooManyImages { given: 257 }
        ));
    }

    #[test]
    fn an_automatic_size_is_computed_later() {
        assert_eq!(merged("--volume v --size auto a", None).unwrap().size, ByteSize(0));
        let job = r#"{"images":["a"],"size":"auto"}"#;
        assert_eq!(merged("--job j --volume v", Some(job)).unwrap().size, ByteSize(0));
        assert_eq!(
            merged("--job j --volume v --secrets s --size auto", Some(JOB)).unwrap().size,
            ByteSize(0)
        );
    }

    #[test]
    fn a_plan_needs_neither_volume_nor_size() {
        let plan = build_request(args("a"), None, &Config::default(), Purpose::Plan).unwrap();
        assert_eq!((plan.volume, plan.size), (PathBuf::new(), ByteSize(0)));
    }

    #[test]
    fn a_malformed_job_still_names_its_result_file() {
        let job = br#"{"images":"none","result_file":"/dev/termination-log"}"#;
        assert_eq!(result_file(&args("--job j"), Some(job)), Some("/dev/termination-log".into()));
        assert_eq!(result_file(&args("--job j --result-file x"), Some(job)), Some("x".into()));
        assert_eq!(result_file(&args("--job j"), Some(b"[")), None);
    }
}
