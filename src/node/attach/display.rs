//! Formats a plan as text, for `--dry-run`.

use std::fmt;

use super::Plan;
use larder_model::count::counted;
use larder_model::job::LayerFormat;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = self.content();
        let form = match content.layer_format {
            LayerFormat::Overlay => "directories",
            LayerFormat::Erofs => "EROFS images",
        };
        writeln!(f, "volume    {}", self.record.volume.display())?;
        writeln!(
            f,
            "cache     {}: {}, {} as {form}",
            self.cache(),
            counted(content.images.len(), "image"),
            counted(content.layers.len(), "layer")
        )?;
        let how = if self.entered.is_some() { "" } else { ", already mounted" };
        writeln!(f, "mounted   {}, read-only{how}", self.record.at.display())?;
        if self.record.direct {
            writeln!(f, "store     {}, for podman, buildah and CRI-O", self.record.at.display())?;
        }
        if let Some(store) = &self.record.store {
            let purpose = if self.record.direct { "builds" } else { "podman, buildah and CRI-O" };
            writeln!(f, "store     {}, for {purpose}", store.display())?;
        }
        let runtimes: Vec<&str> = self.record.runtimes.iter().map(|runtime| runtime.name()).collect();
        writeln!(
            f,
            "runtimes  {}",
            if runtimes.is_empty() { "none".to_owned() } else { runtimes.join(", ") }
        )?;
        for file in &self.files {
            match file.shown.as_ref().or(file.text.as_ref()) {
                Some(text) => {
                    writeln!(f, "file      {}", file.path.display())?;
                    text.lines().try_for_each(|line| writeln!(f, "        | {line}"))?;
                }
                None if file.path.exists() => writeln!(f, "removed   {}", file.path.display())?,
                None => {}
            }
            if let Some(link) = file.link.as_ref().filter(|_| file.text.is_some()) {
                writeln!(f, "link      {}", link.display())?;
            }
        }
        if let Some(containerd) = self.record.containerd.as_ref().filter(|_| self.preload) {
            writeln!(
                f,
                "images    registered in containerd at {}, namespace {}",
                containerd.address.display(),
                containerd.namespace
            )?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note      {note}"))
    }
}
