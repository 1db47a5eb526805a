//! This node's alarms: `/api/v1/alarms`, and one metric for each name.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use prometheus_client::registry::Registry;

use super::View;
use super::metrics::Gauges;
use crate::admission::{Alarm, AlarmName};

pub(super) async fn list(State(view): State<Arc<View>>) -> Json<Vec<Alarm>> {
    Json(view.shared.admission.alarms.active())
}

pub(super) fn metrics(registry: &mut Registry, view: &View) {
    let active = view.shared.admission.alarms.active();
    let gauges = Gauges::default();
    for name in AlarmName::ALL {
        let is_active = active.iter().any(|alarm| alarm.name == name);
        gauges.get_or_create(&vec![("name", name.as_str().to_owned())]).set(u64::from(is_active));
    }
    registry.register("alarm", "1 while an alarm of that name is raised: see docs/alarms.md", gauges);
}
