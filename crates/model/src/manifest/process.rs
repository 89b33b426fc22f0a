//! The default process of a container of an image (OCI image spec, config.md, "config").

use super::{go, shapes};

/// Default search path for programs if the image has none (as in containerd and podman).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The command, environment and working directory of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Command line: `Entrypoint`, then `Cmd`.
    pub args: Vec<String>,
    /// Environment variables as `NAME=value`, in the order of the image.
    pub env: Vec<String>,
    /// Working directory; `/` if the image has none.
    pub working_dir: String,
}

impl Process {
    /// Parses an image config as runtimes do. A config that no runtime can read gives an empty process: other
    /// code rejects such configs.
    pub fn parse(config: &[u8]) -> Self {
        let document = go::read(config, &shapes::CONFIG).unwrap_or_default();
        let config = document.object("config").cloned().unwrap_or_default();
        let texts = |field| config.texts(field).into_iter().map(str::to_owned);
        let working_dir = Some(config.text("WorkingDir")).filter(|dir| !dir.is_empty());
        Process {
            args: texts("Entrypoint").chain(texts("Cmd")).collect(),
            env: texts("Env").collect(),
            working_dir: working_dir.unwrap_or("/").to_owned(),
        }
    }

    /// Returns the value of an environment variable; for duplicates, the last.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = |entry: &'_ String| entry.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
        self.env.iter().rfind(|entry| value(entry)).map(|entry| &entry[name.len() + 1..])
    }

    /// Returns the directories in which programs are searched.
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
