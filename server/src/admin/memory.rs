//! This node's memory, as operators see it: `/api/v1/memory`, `/api/v1/events`, and its part of `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::View;
use super::metrics::{Gauges, counter, gauge};
use crate::admission::{Event, Memory, Stance};

/// The answer of `/api/v1/memory`. All in bytes but `puts_slowed`, `puts_refused`, `clients_closed` and `changes`, which count
/// since the process started, and `stalled`, in thousandths of the last ten seconds.
#[derive(Serialize)]
pub(super) struct Answer {
    /// What this node's own memory allows.
    own: Stance,
    /// What puts meet at this node: the worse of that and the leader's word.
    puts: Stance,
    budget: u64,
    source: String,
    used: u64,
    room: u64,
    stalled: u32,
    process: u64,
    allocated: u64,
    active: u64,
    resident: u64,
    parts: BTreeMap<&'static str, u64>,
    puts_slowed: u64,
    puts_refused: u64,
    clients_closed: u64,
    changes: u64,
}

fn answer(view: &View) -> Answer {
    let Memory { reading, source, stance, own, allocator, parts, changes } = view.shared.admission.memory();
    let gateway = view.shared.gateway.lock();
    let (puts_slowed, puts_refused) = gateway.puts_held_back();
    Answer {
        own: stance,
        puts: gateway.stance(),
        budget: reading.budget,
        source,
        used: reading.used,
        room: reading.room(),
        stalled: reading.stalled,
        process: own,
        allocated: allocator.allocated,
        active: allocator.active,
        resident: allocator.resident,
        parts: parts.each().into(),
        puts_slowed,
        puts_refused,
        clients_closed: gateway.unread_replies().1,
        changes,
    }
}

pub(super) async fn memory(State(view): State<Arc<View>>) -> Json<Answer> {
    Json(answer(&view))
}

pub(super) async fn events(State(view): State<Arc<View>>) -> Json<Vec<Event>> {
    Json(view.shared.admission.events.all())
}

/// Memory and what puts meet, as metrics.
pub(super) fn metrics(registry: &mut Registry, view: &View) {
    let now = answer(view);
    gauge(registry, "memory_budget_bytes", "The limit of memory that is nearest", now.budget);
    gauge(registry, "memory_used_bytes", "Memory in use of it that cannot be taken back", now.used);
    gauge(registry, "memory_process_bytes", "The same of this process alone", now.process);
    gauge(
        registry,
        "memory_stalled_permille",
        "Time that all tasks stood still for memory",
        now.stalled.into(),
    );
    let parts = Gauges::default();
    for (part, bytes) in now.parts {
        parts.get_or_create(&vec![("part", part.to_owned())]).set(bytes);
    }
    registry.register(
        "memory_part_bytes",
        "Memory that grows with what clients do, by our own account",
        parts,
    );
    let allocator = Gauges::default();
    for (kind, bytes) in [("allocated", now.allocated), ("active", now.active), ("resident", now.resident)] {
        allocator.get_or_create(&vec![("kind", kind.to_owned())]).set(bytes);
    }
    registry.register("allocator_bytes", "What the allocator says", allocator);
    let stances = Gauges::default();
    for (of, stance) in [("own", now.own), ("puts", now.puts)] {
        stances.get_or_create(&vec![("of", of.to_owned())]).set(stance.state as u64);
    }
    let help = "0 open, 1 shedding, 2 closed: of this node's memory, and of what its puts meet";
    registry.register("admission_state", help, stances);
    counter(registry, "admission_changes", "Changes of this node's state", now.changes);
    counter(registry, "puts_slowed", "Puts that waited for their turn", now.puts_slowed);
    counter(registry, "puts_refused", "Puts refused for want of memory", now.puts_refused);
    counter(registry, "clients_closed_unread", "Clients closed that took no replies", now.clients_closed);
}
