//! Volumes of a pod as directories (pkg/volume/{secret,emptydir,csi}, pkg/volume/util/atomic_writer.go).

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::{fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::super::super::kind::Id;
use super::super::super::node::PodLayout;
use super::super::super::object::{list, meta, text};
use super::super::super::store::State;
use super::super::volumes;

/// Prepares all volumes of a pod. Returns the reason if one cannot be mounted.
pub(super) fn lay_out(state: &mut State, pod: &Value, container: &Value) -> Result<PodLayout, String> {
    let directory = state.node.root.join("pods").join(meta(pod, "uid"));
    let mut mounts = Vec::new();
    for mount in list(container, "/volumeMounts") {
        let name = text(mount, "/name");
        let Some(volume) = list(pod, "/spec/volumes").iter().find(|volume| volume["name"] == name) else {
            return Err(format!("volume \"{name}\" does not exist"));
        };
        let path = directory.join("volumes").join(name);
        let real = source(state, pod, volume, &path)
            .map_err(|why| format!("MountVolume.SetUp failed for volume \"{name}\" : {why}"))?;
        let real = match text(mount, "/subPath") {
            "" => real,
            below => real.join(below),
        };
        mounts.push((text(mount, "/mountPath").trim_end_matches('/').to_owned(), real));
    }
    let termination = directory.join("termination-log");
    fs::create_dir_all(&directory).and_then(|()| fs::write(&termination, "")).map_err(|e| e.to_string())?;
    Ok(PodLayout {
        mounts,
        pod: directory,
        termination: (
            text(container, "/terminationMessagePath").to_owned(),
            termination,
            text(container, "/terminationMessagePolicy").to_owned(),
        ),
    })
}

fn source(state: &mut State, pod: &Value, volume: &Value, path: &Path) -> Result<PathBuf, String> {
    if let Some(claim) = volume.pointer("/persistentVolumeClaim/claimName").and_then(Value::as_str) {
        return mount_claim(state, pod, claim);
    }
    for (sort, plural, named, decode) in
        [("secret", "secrets", "secretName", true), ("configMap", "configmaps", "name", false)]
    {
        let source = &volume[sort];
        if !source.is_object() {
            continue;
        }
        let name = text(source, &format!("/{named}"));
        let object = state.get(&Id::new("", plural, meta(pod, "namespace"), name));
        if object.is_none() && source["optional"] != true {
            let sort = sort.to_lowercase();
            return Err(format!("{sort} \"{name}\" not found"));
        }
        let data = object.map(|object| object["data"].clone()).unwrap_or_default();
        let files = project(source, &data, decode)?;
        write(path, &files).map_err(|e| e.to_string())?;
        return Ok(path.to_owned());
    }
    if volume["emptyDir"].is_object() {
        fs::create_dir_all(path).map_err(|e| e.to_string())?;
        return Ok(path.to_owned());
    }
    Err("this kind of volume is not simulated".to_owned())
}

fn mount_claim(state: &mut State, pod: &Value, claim: &str) -> Result<PathBuf, String> {
    let (node, uid) = (text(pod, "/spec/nodeName"), meta(pod, "uid"));
    let claim = state.get(&Id::new("", "persistentvolumeclaims", meta(pod, "namespace"), claim));
    let volume = claim.map(|claim| text(claim, "/spec/volumeName").to_owned()).unwrap_or_default();
    let Some(found) = state.get(&Id::new("", "persistentvolumes", "", &volume)).cloned() else {
        return Err("the claim is not bound".to_owned());
    };
    volumes::attach(state, &volume, node);
    let disk = state.driver.volume(text(&found, "/spec/csi/volumeHandle"));
    let Some(kubelet) = state.node.kubelets.get(node) else { return Ok(disk) };
    // pkg/volume/csi/csi_mounter.go: <pod>/volumes/kubernetes.io~csi/<volume>/{vol_data.json,mount}.
    let own = kubelet.join("pods").join(uid).join("volumes/kubernetes.io~csi").join(&volume);
    let at = own.join("mount");
    let mounted = state.node.mounted.entry(uid.to_owned()).or_default();
    if !mounted.contains(&at) {
        bind(&disk, &at).map_err(|e| format!("rpc error: mounting at {}: {e}", at.display()))?;
        fs::write(own.join("vol_data.json"), "{}").map_err(|e| e.to_string())?;
        mounted.push(at.clone());
    }
    Ok(at)
}

/// Mounts the disk, which is a directory of this machine: a bind mount of it replaces the mount of its file
/// system. The effect of removing a device cannot be simulated; [`volumes`] counts where it would occur.
///
/// The mount is writable, even for a claim that is mounted read-only. A driver first binds and then remounts
/// read-only (k8s.io/mount-utils, MakeBindOpts) in its own mount namespace, and the second step does not
/// propagate. The hostpath driver on 1.36 behaved this way.
fn bind(disk: &Path, at: &Path) -> io::Result<()> {
    fs::create_dir_all(at)?;
    Ok(mount(Some(disk), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// Unmounts the volumes of a pod whose container has ended.
pub(super) fn tear_down(state: &mut State, uid: &str) {
    for at in state.node.mounted.remove(uid).unwrap_or_default() {
        // A busy mount is an old one that is no longer tracked; a real kubelet would retry.
        if umount2(&at, MntFlags::empty()).is_ok() {
            let _ = at.parent().map(fs::remove_dir_all);
        }
    }
}

/// Returns paths, contents and modes. Without items, every key is a file.
fn project(source: &Value, data: &Value, encoded: bool) -> Result<Vec<(String, Vec<u8>, u32)>, String> {
    let mode = |item: &Value| {
        let mode = item["mode"].as_u64().or_else(|| source["defaultMode"].as_u64()).unwrap_or(0o644);
        u32::try_from(mode).unwrap_or(0o644)
    };
    let bytes = |key: &str| {
        let value = data.get(key).and_then(Value::as_str)?;
        if encoded { STANDARD.decode(value).ok() } else { Some(value.as_bytes().to_vec()) }
    };
    let items = list(source, "/items");
    if items.is_empty() {
        let all = data.as_object().into_iter().flatten();
        return Ok(all.filter_map(|(key, _)| Some((key.clone(), bytes(key)?, mode(&Value::Null)))).collect());
    }
    let mut files = Vec::new();
    for item in items {
        let key = text(item, "/key");
        match bytes(key) {
            Some(bytes) => files.push((text(item, "/path").to_owned(), bytes, mode(item))),
            None if source["optional"] == true => {}
            None => return Err(format!("references non-existent secret key: {key}")),
        }
    }
    Ok(files)
}

/// Writes files into their own directory. `..data` links to it, and the top-level entries link through
/// `..data`, so that an update is atomic.
fn write(path: &Path, files: &[(String, Vec<u8>, u32)]) -> io::Result<()> {
    if path.join("..data").is_symlink() {
        return Ok(());
    }
    let real = "..2026_01_01_00_00_00.0000000000";
    fs::create_dir_all(path.join(real))?;
    for (name, bytes, mode) in files {
        let file = path.join(real).join(name);
        fs::create_dir_all(file.parent().unwrap_or(path))?;
        fs::write(&file, bytes)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    symlink(real, path.join("..data"))?;
    for entry in fs::read_dir(path.join(real))? {
        let name = entry?.file_name();
        symlink(Path::new("..data").join(&name), path.join(&name))?;
    }
    Ok(())
}
