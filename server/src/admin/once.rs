//! The window of `put-once`: how long, and how many keys.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::View;
use super::change::{Refusal, gateway_for_change};
use crate::queue::{Engine, ONCE_KEYS_MAX};

/// The window, and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// A key is known for so many milliseconds ...
    pub window_ms: u64,
    /// ... unless so many others came after it.
    pub keys_max: u64,
    /// Keys that are kept now; some of them may be too old to count.
    pub keys: u64,
}

impl Window {
    fn of(engine: &Engine) -> Self {
        let (window_us, keys_max, keys) = engine.once_window();
        Window { window_ms: window_us / 1000, keys_max, keys: keys as u64 }
    }
}

#[derive(Deserialize)]
pub(super) struct Asked {
    window_ms: Option<u64>,
    keys: Option<u64>,
}

pub(super) async fn get(State(view): State<Arc<View>>) -> Json<Window> {
    Json(Window::of(view.shared.gateway.lock().engine()))
}

/// Accepted: it is in force, and shown, when its entry has applied. What is not named stays.
pub(super) async fn set(
    State(view): State<Arc<View>>,
    Query(asked): Query<Asked>,
) -> Result<StatusCode, Refusal> {
    let mut gateway = gateway_for_change(&view)?;
    let now = Window::of(gateway.engine());
    let (window_ms, keys) = (asked.window_ms.unwrap_or(now.window_ms), asked.keys.unwrap_or(now.keys_max));
    if keys == 0 || keys > ONCE_KEYS_MAX {
        return Err((StatusCode::BAD_REQUEST, format!("the window holds 1 to {ONCE_KEYS_MAX} keys\n")));
    }
    gateway.set_once_window(window_ms.saturating_mul(1000), keys);
    view.shared.wake_for(&gateway);
    Ok(StatusCode::ACCEPTED)
}
