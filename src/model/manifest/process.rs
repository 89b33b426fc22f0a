//! What a container of an image runs unless it is told otherwise (OCI image spec, config.md, "config").

use serde::Deserialize;

use super::json;

/// Where programs are looked for if the image does not say (what containerd and podman take).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Command, environment and working directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// `Entrypoint`, then `Cmd`.
    pub args: Vec<String>,
    /// `NAME=value`, in the order of the image.
    pub env: Vec<String>,
    /// Working directory; the root where the image does not say.
    pub working_dir: String,
}

#[derive(Default, Deserialize)]
struct Wire {
    config: Option<Config>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
}

impl Process {
    /// Reads it from an image config. What no runtime would take is the runtime's to refuse, so that gives an empty one.
    pub fn parse(config: &[u8]) -> Self {
        let wire: Wire = json::read(config).unwrap_or_default();
        let config = wire.config.unwrap_or_default();
        let mut args = config.entrypoint.unwrap_or_default();
        args.extend(config.cmd.unwrap_or_default());
        Process {
            args,
            env: config.env.unwrap_or_default(),
            working_dir: config.working_dir.filter(|dir| !dir.is_empty()).unwrap_or_else(|| "/".to_owned()),
        }
    }

    /// The value of a variable, the last where it is there twice.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = |entry: &'_ String| entry.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        self.env.iter().rfind(|entry| value(entry)).map(|entry| &entry[name.len() + 1..])
    }

    /// Directories in which programs are looked for.
    pub fn path(&self) -> impl Iterator<Item = &str> {
        self.variable("PATH").unwrap_or(PATH).split(':')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entrypoint_and_command_are_one() {
        let json =
            br#"{"config":{"Entrypoint":["/init","--"],"Cmd":["app"],"Env":["PATH=/a:/b","X=1","PATH=/c"]}}"#;
        let process = Process::parse(json);
        assert_eq!(process.args, ["/init", "--", "app"]);
        assert_eq!(process.path().collect::<Vec<_>>(), ["/c"]);
        assert_eq!((process.variable("X"), process.variable("PAT")), (Some("1"), None));
        assert_eq!(process.working_dir, "/");
    }

    #[test]
    fn what_is_not_there_is_empty() {
        for json in
            [r#"{}"#, r#"{"config":null}"#, r#"{"config":{"Cmd":null}}"#, r#"{"config":{"Cmd":"x"}}"#, "["]
        {
            let process = Process::parse(json.as_bytes());
            assert_eq!(process.args, Vec::<String>::new(), "{json}");
        }
    }
}
