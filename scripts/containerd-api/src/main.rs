//! `containerd-api PROTOS OUT`: the Rust of containerd's snapshots service, made of the protos below PROTOS.

use std::path::Path;
use std::{env, error, fs};

const SERVICE: &str = "github.com/containerd/containerd/api/services/snapshots/v1/snapshots.proto";

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
        return Err("want two arguments: PROTOS OUT".into());
    };
    let mut described = protox::compile([SERVICE], [protos])?;
    // Comments, which are in the form of another language.
    described.file.iter_mut().for_each(|file| file.source_code_info = None);
    fs::create_dir_all(out)?;
    tonic_prost_build::configure()
        // Callers bring their own connections.
        .build_transport(false)
        .out_dir(out)
        .compile_fds(described)?;
    for entry in fs::read_dir(Path::new(out))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        fs::write(&path, format!("{NOTE}\n{text}"))?;
    }
    Ok(())
}
