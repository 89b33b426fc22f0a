//! `containerd-api PROTOS OUT` generates Rust code for the containerd services that Larder uses, from the
//! protos below PROTOS.

use std::path::Path;
use std::{env, error, fs};

const SERVICES: &str = "github.com/containerd/containerd/api/services";
/// The service with a client and a server.
const CLIENT_AND_SERVER: &str = "snapshots/v1/snapshots.proto";
/// The services with a client only.
const CLIENT_ONLY: [&str; 6] = [
    "containers/v1/containers.proto",
    "content/v1/content.proto",
    "images/v1/images.proto",
    "leases/v1/leases.proto",
    "namespaces/v1/namespace.proto",
    "version/v1/version.proto",
];

const NOTE: &str = "\
// Written by scripts/containerd-api.sh, which writes it again. Not for editing.
//
// Made of containerd's published protos, which are:
//
//   Copyright The containerd Authors.
//
//   Licensed under the Apache License, Version 2.0 (the \"License\");
//   you may not use this file except in compliance with the License.
//   You may obtain a copy of the License at
//
//       http://www.apache.org/licenses/LICENSE-2.0
//
//   Unless required by applicable law or agreed to in writing, software
//   distributed under the License is distributed on an \"AS IS\" BASIS,
//   WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
//   See the License for the specific language governing permissions and
//   limitations under the License.
";

fn main() -> Result<(), Box<dyn error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [protos, out] = arguments.as_slice() else {
        return Err("expected two arguments: PROTOS OUT".into());
    };
    fs::create_dir_all(out)?;
    let all: Vec<&str> = [CLIENT_AND_SERVER].into_iter().chain(CLIENT_ONLY).collect();
    write(protos, &all, false, Path::new(out))?;
    // The server half. The client half and the messages are generated already.
    let half = Path::new(out).join("served");
    fs::create_dir_all(&half)?;
    write(protos, &[CLIENT_AND_SERVER], true, &half)?;
    let name = "containerd.services.snapshots.v1.rs";
    fs::rename(half.join(name), Path::new(out).join(name))?;
    fs::remove_dir_all(&half)?;
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        fs::write(&path, format!("{NOTE}\n{text}"))?;
    }
    Ok(())
}

fn write(protos: &str, services: &[&str], served: bool, out: &Path) -> Result<(), Box<dyn error::Error>> {
    let files = services.iter().map(|service| format!("{SERVICES}/{service}"));
    let mut described = protox::compile(files, [protos])?;
    // Comments of the protos, which are not valid rustdoc.
    described.file.iter_mut().for_each(|file| file.source_code_info = None);
    tonic_prost_build::configure()
        // Callers bring their own connections.
        .build_transport(false)
        .build_server(served)
        .out_dir(out)
        .compile_fds(described)?;
    Ok(())
}
