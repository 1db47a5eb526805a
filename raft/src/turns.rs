//! How long a thread's turns on a processor are.

/// 100 µs: the least that Linux takes.
#[cfg(target_os = "linux")]
const TURN_NS: u64 = 100_000;

/// Asks for short turns of the calling thread, and with that to be given one soon after it wakes, where more threads than
/// processors want to run. Its share of the time stays the same. Linux does that from 6.12 on; elsewhere, and where it is
/// not allowed, nothing changes.
pub fn take_short_turns() {
    #[cfg(target_os = "linux")]
    linux::set_turn(TURN_NS);
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
mod linux {
    use std::mem::{size_of, zeroed};

    use libc::{c_long, c_ulong};

    const THIS_THREAD: c_long = 0;
    const FLAGS: c_ulong = 0;

    /// `sched_getattr` and `sched_setattr` have no wrappers: sched(7), sched_setattr(2).
    pub(super) fn set_turn(nanoseconds: u64) {
        const SIZE: u32 = size_of::<libc::sched_attr>() as u32;
        // SAFETY: all fields are plain numbers.
        let mut attributes: libc::sched_attr = unsafe { zeroed() };
        let pointer = &raw mut attributes;
        // SAFETY: the structure is as long as is said.
        let got = unsafe {
            libc::syscall(libc::SYS_sched_getattr, THIS_THREAD, pointer, c_ulong::from(SIZE), FLAGS)
        };
        // Whoever started the server with a real-time policy wants that.
        if got != 0 || i32::try_from(attributes.sched_policy) != Ok(libc::SCHED_OTHER) {
            return;
        }
        attributes.size = SIZE;
        attributes.sched_runtime = nanoseconds;
        // SAFETY: as above. That it fails is fine: the turns stay as they are.
        let _ = unsafe { libc::syscall(libc::SYS_sched_setattr, THIS_THREAD, &raw const attributes, FLAGS) };
    }
}

#[cfg(test)]
mod tests {
    /// Also on a kernel that takes no notice of it.
    #[test]
    fn nice_and_policy_stay_as_they_are() {
        let before = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
        super::take_short_turns();
        let after = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
        // Counted from the end of the name, which may hold spaces: priority and nice are fields 18 and 19, the policy 41.
        let of = |text: &str| -> Vec<String> {
            let fields: Vec<_> =
                text.rsplit(") ").next().unwrap_or_default().split(' ').map(str::to_owned).collect();
            [15, 16, 38].iter().filter_map(|at| fields.get(*at).cloned()).collect()
        };
        assert_eq!(of(&before), of(&after));
    }
}
