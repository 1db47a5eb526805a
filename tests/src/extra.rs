//! Tests that need something which is not everywhere (a program, root, time) never turn green silently:
//! they print `SKIPPED name: reason`, and the CI step that wants them counts such lines.

use std::io::Write;
use std::path::PathBuf;

/// True when the long suites are wanted (`BEANPOLE_EXTRA=1`).
pub fn wanted() -> bool {
    std::env::var_os("BEANPOLE_EXTRA").is_some_and(|value| value == "1")
}

/// Says that test `name` did not run, and why. Written to the real stderr, which the test harness does
/// not capture, so that a green run still shows it.
pub fn skipped(name: &str, reason: &str) {
    // A closed stderr is no reason to fail a test that did not run.
    let _unheard = writeln!(std::io::stderr(), "SKIPPED {name}: {reason}");
}

/// Says SKIPPED and gives true unless the long suites are wanted.
pub fn skip_unless_wanted(name: &str) -> bool {
    if !wanted() {
        skipped(name, "a long suite; set BEANPOLE_EXTRA=1 to run it");
    }
    !wanted()
}

/// Where a program lies on `PATH` or in the usual system directories.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
}

/// The library that moves a process's wall clock when it is loaded before all others (Debian's package `libfaketime`).
pub fn libfaketime() -> Option<PathBuf> {
    let places =
        ["x86_64-linux-gnu", "aarch64-linux-gnu", "."].map(|arch| PathBuf::from("/usr/lib").join(arch));
    let files = places.map(|place| place.join("faketime/libfaketimeMT.so.1"));
    files.into_iter().find(|file| file.is_file())
}
