//! This node's disk, as operators see it: `/api/v1/disk`, and its part of `/metrics`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use beanpole_raft::{DamageTotals, DiskUsage, Node, ScrubStatus, Space};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};

use super::View;
use super::metrics::{counter, gauge};

/// The answer of `/api/v1/disk`. Sizes in bytes; what is counted is counted since the process started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) log_bytes: u64,
    pub(crate) live_bytes: u64,
    pub(crate) dead_bytes: u64,
    pub(crate) free_bytes: Option<u64>,
    pub(crate) segments: u64,
    pub(crate) body_segments: u64,
    pub(crate) damage: Damage,
    pub(crate) scrub: Scrub,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Damage {
    /// Segments with damage that are not repaired yet.
    pub(crate) segments: u64,
    /// Places found.
    pub(crate) found: u64,
    /// Bodies that came from other nodes in their place.
    pub(crate) fetched: u64,
    /// Segments repaired.
    pub(crate) repaired: u64,
    /// How often no voter had a body.
    pub(crate) lost: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Scrub {
    pub(crate) running: bool,
    /// Passes completed.
    pub(crate) passes: u64,
    /// Bytes checked in all passes.
    pub(crate) bytes: u64,
    /// Of the pass under way or the last one.
    pub(crate) done: u64,
    pub(crate) total: u64,
}

pub(super) async fn disk(State(view): State<Arc<View>>) -> Result<Json<Disk>, (StatusCode, &'static str)> {
    let node = view.node.get().ok_or(super::api::RECOVERING)?;
    let usage = node.bodies().disk_usage();
    let DamageTotals { found, fetched, healed, lost } = node.bodies().damage();
    let ScrubStatus { running, passes, bytes, done, total } = node.scrub_status();
    Ok(Json(Disk {
        log_bytes: usage.log_bytes,
        live_bytes: usage.live_bytes,
        dead_bytes: usage.dead_bytes,
        free_bytes: usage.free_bytes,
        segments: usage.segments,
        body_segments: usage.body_segments,
        damage: Damage { segments: usage.damaged_segments, found, fetched, repaired: healed, lost },
        scrub: Scrub { running, passes, bytes, done, total },
    }))
}

/// Accepted: a pass begins now, unless one is under way; `GET /api/v1/disk` shows how far it is.
pub(super) async fn scrub(State(view): State<Arc<View>>) -> Result<StatusCode, (StatusCode, &'static str)> {
    view.node.get().ok_or(super::api::RECOVERING)?.scrub();
    Ok(StatusCode::ACCEPTED)
}

/// The disk as metrics.
pub(super) fn metrics(registry: &mut Registry, node: &Node) {
    usage(registry, &node.bodies().disk_usage());
    let damage = node.bodies().damage();
    counter(registry, "damage_found", "Places on this disk that did not check out", damage.found);
    counter(registry, "damage_fetched", "Bodies that came from other nodes in their place", damage.fetched);
    counter(registry, "damage_repaired", "Segments that were written anew because of damage", damage.healed);
    counter(registry, "damage_lost", "How often no voter had a body", damage.lost);
    let scrub = node.scrub_status();
    gauge(registry, "scrub_running", "1 while the disk is looked through for damage", scrub.running.into());
    counter(registry, "scrub_passes", "How often all of it was looked through", scrub.passes);
    counter(registry, "scrub_bytes", "Bytes that were looked at", scrub.bytes);
    gauge(registry, "scrub_done_bytes", "Bytes of this pass, or the last one, that are done", scrub.done);
    gauge(registry, "scrub_total_bytes", "Bytes of this pass, or the last one, in all", scrub.total);
}

fn usage(registry: &mut Registry, disk: &DiskUsage) {
    gauge(registry, "disk_log_bytes", "Size of all segment files", disk.log_bytes);
    gauge(registry, "disk_live_bytes", "Bytes of bodies that jobs refer to", disk.live_bytes);
    gauge(registry, "disk_dead_bytes", "Bytes in segments that nothing refers to", disk.dead_bytes);
    gauge(registry, "disk_segments", "Segment files", disk.segments);
    let space = match disk.space {
        Space::Open => 0,
        Space::Shedding => 1,
        Space::Closed => 2,
    };
    gauge(
        registry,
        "disk_space_state",
        "0 puts are taken, 1 refused for want of room, 2 the disk is full",
        space,
    );
    if let Some(free) = disk.free_bytes {
        gauge(registry, "disk_free_bytes", "Free bytes of the disk that holds the data directory", free);
    }
    gauge(registry, "disk_body_segments", "Segment files that hold bodies only", disk.body_segments);
    gauge(
        registry,
        "disk_damaged_segments",
        "Segments kept as they are because of damage",
        disk.damaged_segments,
    );
    counter(registry, "disk_logged_bytes", "Bytes written to the log by this process", disk.logged_bytes);
    if let Some(written) = written_bytes() {
        counter(
            registry,
            "disk_written_bytes",
            "Bytes that this process had written to storage, by the kernel's account",
            written,
        );
    }
    counter(registry, "disk_rewritten_bytes", "Bytes that compaction wrote", disk.rewritten_bytes);
    counter(registry, "disk_compacted_bytes", "Bytes that compaction gave back", disk.compacted_bytes);
    gauge(registry, "disk_pinned_deleted_bytes", "Deleted segments still being read", disk.pinned_deleted);
}

/// What the kernel had written to storage for this process so far; none where it does not tell.
fn written_bytes() -> Option<u64> {
    let account = std::fs::read_to_string("/proc/self/io").ok()?;
    account.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}
