//! What must not be in the engine: anything that could make two nodes differ.

use std::fs;
use std::path::Path;

/// Text that must not occur in the engine's code, and why.
const BANNED: &[(&str, &str)] = &[
    ("std::time", "a clock"),
    ("Instant", "a clock"),
    ("SystemTime", "a clock"),
    ("std::fs", "IO"),
    ("std::net", "IO"),
    ("std::env", "local configuration"),
    ("std::thread", "threads"),
    ("std::sync::atomic", "shared state"),
    ("Mutex", "shared state"),
    ("tokio", "async"),
    ("async ", "async"),
    (".await", "async"),
    ("rand", "randomness"),
    ("RandomState", "randomness"),
    ("f32", "floats"),
    ("f64", "floats"),
    ("unsafe", "memory that Rust does not check"),
    ("HashMap", "an order that differs"),
    ("HashSet", "an order that differs"),
];

/// The one place for a hash table: it offers no way to walk it.
const HASHING: &str = "names.rs";

#[test]
fn nothing_in_the_engine_can_make_two_nodes_differ() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue");
    let mut files = 0;
    for file in fs::read_dir(&directory).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        files += 1;
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap();
            for (word, what) in BANNED {
                let allowed = name == HASHING && word.starts_with("Hash");
                assert!(
                    allowed || !has_word(code, word),
                    "{name}:{}: `{word}` ({what}) must not be in the engine: {line}",
                    number + 1
                );
            }
        }
    }
    assert!(files > 10, "the engine is in {}", directory.display());
}

#[test]
fn the_table_of_names_cannot_be_walked() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/queue").join(HASHING);
    let text = fs::read_to_string(path).unwrap();
    for word in [".iter()", ".keys()", ".values()", ".drain(", "into_iter", "IntoIterator"] {
        assert!(!text.contains(word), "`{word}` in {HASHING}");
    }
}

/// Whether the text has the word, not as a part of another.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_some_and(|c| part(c) && word.starts_with(part));
        let after = text[at + word.len()..].chars().next().is_some_and(|c| part(c) && word.ends_with(part));
        !before && !after
    })
}
