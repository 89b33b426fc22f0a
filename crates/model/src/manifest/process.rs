//! What a container of an image runs unless it is told otherwise (OCI image spec, config.md, "config").

use super::{go, shapes};

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

impl Process {
    /// Reads it from an image config, as runtimes do. A config that no runtime reads gives an empty one: refusing it is not this
    /// reader's part.
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
