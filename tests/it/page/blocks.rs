//! Blocks of commands of a page: the fences `sh` and `console`.
//!
//! A comment directly before a block is a note for the tests, which the page does not show:
//! `<!-- not run: REASON -->`, or `<!-- before: COMMANDS -->` with commands that the runner adds.

/// A block of commands.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// Number of its first line in the page.
    pub(crate) line: usize,
    pub(crate) commands: String,
    /// Lines that the page shows as output: those of a `text` block that follows directly, or of a console.
    pub(crate) output: Vec<String>,
    /// Content of the comment directly before the block.
    pub(crate) note: String,
}

impl Block {
    /// Returns why the tests do not run this block, if it is marked.
    pub(crate) fn not_run(&self) -> Option<&str> {
        self.note.strip_prefix("not run:").map(str::trim)
    }

    /// Returns the commands that the runner adds before the block.
    pub(crate) fn before(&self) -> &str {
        self.note.strip_prefix("before:").unwrap_or_default().trim()
    }
}

/// Returns the blocks of commands of a page, in order. Panics if a fence has no language.
pub(crate) fn parse(page: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut note, mut follows) = (String::new(), false);
    let mut lines = page.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let mut rest = || lines.next().map(|(_, line)| line.get(indent..).unwrap_or_default());
        if let Some(comment) = line.trim().strip_prefix("<!-- ") {
            comment.clone_into(&mut note);
            while !note.ends_with("-->") {
                note = format!("{note}\n{}", rest().unwrap());
            }
            note.truncate(note.len() - "-->".len());
        } else if let Some(language) = line.trim().strip_prefix("```") {
            assert!(!language.is_empty(), "line {}: the block has no language", number + 1);
            let text: Vec<&str> = std::iter::from_fn(|| rest().filter(|line| *line != "```")).collect();
            let note = std::mem::take(&mut note).trim().to_owned();
            let owned = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
            let mut block = Block { line: number + 1, note, ..Block::default() };
            match language {
                "sh" => block.commands = text.join("\n"),
                "console" => {
                    let (commands, output): (Vec<&str>, Vec<&str>) =
                        text.into_iter().partition(|line| line.starts_with(['$', '#']));
                    block.commands = commands.iter().map(|line| &line[2..]).collect::<Vec<_>>().join("\n");
                    block.output = owned(&output);
                }
                "text" if follows => blocks.last_mut().unwrap().output = owned(&text),
                _ => {}
            }
            follows = language == "sh";
            if !block.commands.is_empty() {
                blocks.push(block);
            }
        } else if !line.trim().is_empty() {
            note.clear();
            follows = false;
        }
    }
    blocks
}
