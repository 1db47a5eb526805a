//! How many jobs of each tube may be worked on at once.
//!
//! A slot that waits for a job of a limited tube takes one of the tube's places before it waits, for whatever job comes may be
//! of that tube. It keeps the place of the job's own tube, and gives the others back.

use std::sync::Arc;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The tubes of a worker and their limits.
#[derive(Debug)]
pub(super) struct Limits {
    tubes: Vec<(String, Option<Arc<Semaphore>>)>,
    /// A place was given back.
    freed: Arc<Notify>,
}

/// A place of a limited tube, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    tube: String,
    permit: Option<OwnedSemaphorePermit>,
    freed: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.freed.notify_waiters();
    }
}

impl Limits {
    pub(super) fn new(tubes: &[String], limits: &[(String, usize)]) -> Limits {
        let limit =
            |tube: &String| limits.iter().find(|(limited, _)| limited == tube).map(|(_, limit)| *limit);
        let one = |tube: &String| (tube.clone(), limit(tube).map(|limit| Arc::new(Semaphore::new(limit))));
        Limits { tubes: tubes.iter().map(one).collect(), freed: Arc::default() }
    }

    /// The tubes that a slot may wait for at this time, and the places that it takes by that. None when there is no such tube.
    fn take(&self) -> Option<(Vec<String>, Vec<Place>)> {
        let (mut watched, mut places) = (Vec::new(), Vec::new());
        for (tube, limit) in &self.tubes {
            if let Some(limit) = limit {
                let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
                places.push(Place { tube: tube.clone(), permit: Some(permit), freed: self.freed.clone() });
            }
            watched.push(tube.clone());
        }
        (!watched.is_empty()).then_some((watched, places))
    }

    /// The same; waits while no tube has a place.
    pub(super) async fn wait(&self) -> (Vec<String>, Vec<Place>) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Whoever gives a place back between the look and the wait is heard.
            freed.as_mut().enable();
            if let Some(taken) = self.take() {
                return taken;
            }
            freed.await;
        }
    }
}

/// Keeps the place of one tube; the others are free again.
pub(super) fn keep(places: Vec<Place>, tube: &str) -> Option<Place> {
    places.into_iter().find(|place| place.tube == tube)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_and_given_back() {
        let limits = Limits::new(&["a".into(), "b".into()], &[("a".into(), 1)]);
        let (watched, places) = limits.take().unwrap();
        assert_eq!(watched, ["a", "b"]);
        assert_eq!(limits.take().unwrap().0, ["b"], "the only place of a is taken");
        assert!(keep(places, "b").is_none());
        let (watched, places) = limits.take().unwrap();
        assert_eq!(watched, ["a", "b"]);
        let kept = keep(places, "a");
        assert!(kept.is_some());
        assert_eq!(limits.take().unwrap().0, ["b"]);
    }

    #[tokio::test]
    async fn a_slot_waits_for_a_place_if_all_tubes_are_limited() {
        let limits = Arc::new(Limits::new(&["a".into()], &[("a".into(), 1)]));
        let taken = limits.take().unwrap();
        let waiting = tokio::spawn({
            let limits = limits.clone();
            async move { limits.wait().await.0 }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(taken);
        assert_eq!(waiting.await.unwrap(), ["a"]);
    }
}
