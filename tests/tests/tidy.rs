//! The mechanical part of our style, so that nobody has to argue about it: lengths, forbidden words and imports, links in
//! documents. It reads the source as text and prints every place that breaks a rule.

use std::fs;
use std::path::{Path, PathBuf};

/// Code lines of one function; beyond that its parts deserve names.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of one file; beyond that it holds more than one idea.
const FILE_LINES_MAX: usize = 900;
/// Characters of one line of code or comment.
const LINE_CHARS_MAX: usize = 130;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above").to_owned()
}

fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') && name != "node_modules" {
                files(&path, ending, found);
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root(), ".rs", &mut found);
    found.sort();
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn report(broken: &[String]) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn files_and_lines_keep_their_length() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            broken.push(format!("{}: {lines} lines, more than {FILE_LINES_MAX}", path.display()));
        }
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                broken.push(format!("{}:{}: longer than {LINE_CHARS_MAX}", path.display(), number + 1));
            }
        }
    }
    report(&broken);
}

/// Functions are found by indentation, which rustfmt guarantees: from a line with `fn` to the closing brace below it.
#[test]
fn functions_fit_on_a_screen() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let is_fn = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(crate) fn ", "pub(super) fn "]
                .iter()
                .any(|head| code.starts_with(head));
            // A signature without a body ends on its own line.
            if !is_fn || code.ends_with(';') {
                continue;
            }
            let close = format!("{}}}", &line[..line.len() - code.len()]);
            let Some(len) = lines[start..].iter().position(|line| *line == close) else { continue };
            if len > FUNCTION_LINES_MAX {
                broken.push(format!("{}:{}: a function of {len} lines", path.display(), start + 1));
            }
        }
    }
    report(&broken);
}

#[test]
fn nothing_is_left_for_later() {
    // Written in halves, so that this file does not find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("todo", "!("),
        concat!("for", " now"),
    ];
    let mut broken = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            for word in words.iter().filter(|word| has_word(line, word)) {
                broken.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    report(&broken);
}

/// Whether the line has the word, and not only as the beginning of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let next = line[at + word.len()..].chars().next();
        !next.is_some_and(char::is_alphabetic)
    })
}

/// The engine must give the same result on every node: nothing that differs between machines or runs may come in.
#[test]
fn the_engine_imports_nothing_that_differs_between_nodes() {
    let banned = [
        "std::time",
        "SystemTime",
        "Instant",
        "tokio",
        "rand::",
        "std::fs",
        "std::net",
        "std::env",
        "f32",
        "f64",
    ];
    let mut broken = Vec::new();
    for (path, text) in sources() {
        if !path.starts_with(root().join("server/src/queue")) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in
            code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
        {
            for word in banned.iter().filter(|word| line.contains(**word)) {
                broken.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    report(&broken);
}

/// openraft is a pre-release: only the crate that wraps it may name it.
#[test]
fn only_raft_names_the_consensus_library() {
    let mut broken = Vec::new();
    for (path, text) in sources() {
        if path.starts_with(root().join("raft")) || path.ends_with("tests/tests/tidy.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if line.contains("openraft::") || line.contains("use openraft") {
                broken.push(format!("{}:{}: openraft", path.display(), number + 1));
            }
        }
    }
    report(&broken);
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut found = Vec::new();
    files(&root(), ".md", &mut found);
    let mut broken = Vec::new();
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let local = !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:");
            if local && !path.parent().unwrap().join(file).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    report(&broken);
}

/// ARCHITECTURE.md names files; a name that is gone misleads.
#[test]
fn the_architecture_names_files_that_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut broken = Vec::new();
    for name in text.split('`').skip(1).step_by(2) {
        let is_path =
            name.contains('/') && !name.contains(' ') && !name.starts_with('/') && !name.contains('*');
        let crates = ["", "server/src/"];
        if is_path && !crates.iter().any(|prefix| root().join(prefix).join(name).exists()) {
            broken.push(name.to_owned());
        }
    }
    report(&broken);
}
