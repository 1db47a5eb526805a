//! Every line that a node prints, with its name in front: `[n1] `, coloured on a terminal.

use std::io::{self, BufRead, BufReader, IsTerminal, PipeReader, Write};

/// ANSI colours that are legible on dark and light grounds; node 1 has the first.
const COLOURS: [u8; 6] = [36, 33, 35, 32, 34, 31];

/// Copies lines from a node's pipe to standard error until the pipe ends, on a thread of its own.
pub(super) fn forward(id: u64, from: PipeReader) -> io::Result<()> {
    let prefix = prefix(id, io::stderr().is_terminal());
    std::thread::Builder::new().name(format!("lines n{id}")).spawn(move || copy(&prefix, from))?;
    Ok(())
}

fn prefix(id: u64, coloured: bool) -> String {
    if coloured {
        let colour = COLOURS[(id as usize + COLOURS.len() - 1) % COLOURS.len()];
        format!("\x1b[{colour}m[n{id}]\x1b[0m ")
    } else {
        format!("[n{id}] ")
    }
}

/// The pipe is read on even if standard error is closed: a full pipe would stop the node.
fn copy(prefix: &str, from: impl io::Read) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        line.extend_from_slice(prefix.as_bytes());
        match from.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        // One write per line, so that lines of several nodes do not mix.
        let _nobody_reads = io::stderr().write_all(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_coloured_only_on_a_terminal() {
        assert_eq!(prefix(2, false), "[n2] ");
        assert_eq!(prefix(1, true), "\x1b[36m[n1]\x1b[0m ");
        assert_ne!(prefix(3, true), prefix(4, true).replace("n4", "n3"));
    }
}
