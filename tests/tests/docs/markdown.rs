//! As much of Markdown as the pages use: fenced blocks, headings, links, tables. It must not know what they are about.

use regex::Regex;

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// The first word behind the fence.
    pub(crate) language: String,
    /// The line of the fence, counted from 1.
    pub(crate) line: usize,
    pub(crate) text: String,
}

/// A page, taken apart.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) path: &'static str,
    pub(crate) blocks: Vec<Block>,
    /// All lines outside of blocks.
    pub(crate) prose: String,
}

impl Page {
    pub(crate) fn parse(path: &'static str, text: &str) -> Self {
        let mut page = Self { path, blocks: Vec::new(), prose: String::new() };
        let mut open: Option<Block> = None;
        for (line, number) in text.lines().zip(1..) {
            match (open.take(), line.strip_prefix("```")) {
                (None, Some(info)) => {
                    let language = info.split_whitespace().next().unwrap_or_default().to_owned();
                    open = Some(Block { language, line: number, text: String::new() });
                }
                (Some(block), Some(_)) => page.blocks.push(block),
                (Some(mut block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                    open = Some(block);
                }
                (None, None) => {
                    page.prose.push_str(line);
                    page.prose.push('\n');
                }
            }
        }
        page
    }

    /// Targets of links, images left out: the pages have none.
    pub(crate) fn links(&self) -> Vec<String> {
        let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
        // A link in backquotes is none.
        let code = Regex::new("`[^`]*`").unwrap();
        let prose = code.replace_all(&self.prose, "``");
        link.captures_iter(&prose).map(|found| found[1].to_owned()).collect()
    }

    /// What headings can be linked to by, as GitHub makes it.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let headings =
            self.prose.lines().filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
        headings
            .map(|heading| {
                let kept = heading.to_lowercase().replace(' ', "-");
                kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
            })
            .collect()
    }

    /// The lines below a heading, up to the next one of the same or a higher level.
    pub(crate) fn section(&self, heading: &str) -> String {
        let mut lines = self.prose.lines().skip_while(|line| line.trim_start_matches('#').trim() != heading);
        let level = lines.next().map_or(0, |line| line.chars().take_while(|c| *c == '#').count());
        assert!(level > 0, "{} has no heading {heading:?}", self.path);
        let is_next = |line: &&str| {
            let depth = line.chars().take_while(|c| *c == '#').count();
            depth > 0 && depth <= level
        };
        lines.take_while(|line| !is_next(line)).collect::<Vec<_>>().join("\n")
    }
}

/// The cells of each row of the tables in a text, heads included.
pub(crate) fn rows(text: &str) -> Vec<Vec<String>> {
    let is_row = |line: &&str| line.starts_with("| ");
    // An escaped bar belongs to its cell.
    let cells = |line: &str| {
        let line = line.trim().replace("\\|", "\u{0}");
        let inner = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')).unwrap_or_default();
        inner.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
    };
    text.lines().filter(is_row).map(cells).collect()
}

/// What stands in backquotes.
pub(crate) fn code(text: &str) -> Vec<String> {
    let code = Regex::new("`([^`\n]+)`").unwrap();
    code.captures_iter(text).map(|found| found[1].to_owned()).collect()
}
