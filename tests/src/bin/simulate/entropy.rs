//! All randomness of a process comes from its seed.
//!
//! Whatever draws random numbers here begins with some bytes of the system's: `rand`'s generators, the keys of hash
//! maps, tokio's choice of a branch of `select!` and of a waiter to wake. They are asked for through one function
//! of the C library, `getrandom`. This program brings its own: once it was given a seed, it answers from that.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

static SEEDED: AtomicBool = AtomicBool::new(false);
static STATE: AtomicU64 = AtomicU64::new(0);

/// From now on the system's randomness is that of `seed`.
pub fn seed(seed: u64) {
    STATE.store(seed, Relaxed);
    SEEDED.store(true, Relaxed);
}

/// One step of SplitMix64.
fn draw() -> u64 {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut z = STATE.fetch_add(STEP, Relaxed).wrapping_add(STEP);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Takes the place of the C library's function of that name.
///
/// # Safety
/// As there: `buffer` is valid for writing `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, len: usize, flags: libc::c_uint) -> libc::ssize_t {
    if !SEEDED.load(Relaxed) {
        // SAFETY: the caller's promise is the system call's condition.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, len, flags) };
        return got as libc::ssize_t;
    }
    for at in 0..len {
        // SAFETY: `at` is below `len`, and the caller promises that many bytes.
        unsafe { buffer.add(at).write(draw() as u8) };
    }
    libc::ssize_t::try_from(len).unwrap_or(libc::ssize_t::MAX)
}
