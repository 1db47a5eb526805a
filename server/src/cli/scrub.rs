//! `beanpole node scrub`: looks through a node's disk for damage.

use std::time::{Duration, Instant};

use super::admin::{self, Ask, Failure, NO, Output, TIMED_OUT, YES};
use super::node::address_of;
use crate::admin::disk::Disk;
use crate::units::Size;

/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long is waited for what was found to be repaired.
const REPAIR_WITHIN: Duration = Duration::from_secs(30);

/// Begins a pass; with `wait` tells what came of it: exit code 0 if nothing damaged is left, 1 if something is.
pub(super) fn scrub(ask: &Ask, id: u64, wait: bool, timeout: Duration) -> Result<u8, Failure> {
    let address = address_of(ask, id)?;
    let look = || admin::get::<Disk>(&address, "/api/v1/disk");
    let before = look()?;
    admin::change("POST", &address, "/api/v1/scrub")?;
    if !wait {
        println!("everything on the disk of node {id} is looked through for damage");
        return Ok(YES);
    }
    let begun = Instant::now();
    let mut now = look()?;
    while now.scrub.passes == before.scrub.passes {
        if begun.elapsed() > timeout {
            let (done, total) = (Size(now.scrub.done), Size(now.scrub.total));
            return Err(Failure::new(TIMED_OUT, format!("{done} of {total} are done; it goes on")));
        }
        std::thread::sleep(LOOK_EVERY);
        now = look()?;
    }
    let looked = Instant::now();
    while now.damage.segments > 0 && looked.elapsed() < REPAIR_WITHIN {
        std::thread::sleep(LOOK_EVERY);
        now = look()?;
    }
    tell(ask, id, &before, &now);
    Ok(if now.damage.segments == 0 { YES } else { NO })
}

fn tell(ask: &Ask, id: u64, before: &Disk, now: &Disk) {
    if ask.output == Output::Json {
        println!("{:#}", serde_json::to_value(now).unwrap_or_default());
        return;
    }
    let (found, repaired) =
        (now.damage.found - before.damage.found, now.damage.repaired - before.damage.repaired);
    let size = Size(now.scrub.total);
    println!("node {id}: {size} looked at, {found} damaged places found, {repaired} segments repaired");
    if now.damage.segments > 0 {
        println!("{} segments are still damaged: the log of the node says why", now.damage.segments);
    }
}
