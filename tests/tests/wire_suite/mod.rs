//! Runs all golden scripts of the wire against one product, several at a time: most of a script's time is
//! spent waiting for the protocol's whole seconds.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use beanpole_tests::script::{self, Script};
use beanpole_tests::server::Setup;

/// Scripts that run at the same time.
const AT_A_TIME: usize = 8;

/// Runs every script that describes the product of `setup`; panics with all failures.
///
/// `BEANPOLE_SCRIPT=name` restricts the run to scripts whose file name contains it.
pub fn run_all(setup: &Setup) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/wire");
    let wanted = std::env::var("BEANPOLE_SCRIPT").unwrap_or_default();
    let scripts: Vec<Script> = script::load_all(&dir)
        .into_iter()
        .filter(|script| script.servers.contains(&setup.kind()))
        .filter(|script| script.path.to_string_lossy().contains(&wanted))
        .collect();
    assert!(!scripts.is_empty(), "no script for {:?} in {}", setup.kind(), dir.display());

    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(script) = scripts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(failure) = script::run(script, setup) {
                        failures.lock().unwrap().push(failure.to_string());
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} of {} scripts failed:\n\n{}",
        failures.len(),
        scripts.len(),
        failures.join("\n\n")
    );
    println!("{} scripts agree with {:?}", scripts.len(), setup.kind());
}
