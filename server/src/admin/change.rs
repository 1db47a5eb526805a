//! What changes of replicated settings ask first.

use axum::http::StatusCode;
use parking_lot::MutexGuard;

use super::View;
use crate::gateway::Gateway;

/// Why a request is refused: the status and a line that says what to do.
pub(super) type Refusal = (StatusCode, String);

/// The gateway of a node that serves, in a cluster whose members all know what is about to be proposed.
pub(super) fn gateway_for_change(view: &View) -> Result<MutexGuard<'_, Gateway>, Refusal> {
    let gateway = view.shared.gateway.lock();
    if !gateway.is_ready() {
        return Err((StatusCode::SERVICE_UNAVAILABLE, "this node does not serve commands now\n".to_owned()));
    }
    if gateway.engine().level() == 0 {
        let why =
            "not all members have told that their release can do this: upgrade and start them all first\n";
        return Err((StatusCode::CONFLICT, why.to_owned()));
    }
    Ok(gateway)
}
