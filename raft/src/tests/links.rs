//! Messages between nodes.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::cluster_rig::{Rack, address};
use super::rig::within;
use crate::{Link, LinkClosed, LinkError, Payload};

/// A link from node 1 to node 2, both ends.
async fn pair(rack: &Rack) -> (Link, Link) {
    let (near, far) = tokio::join!(within(rack.node(1).connect(2)), within(rack.node(2).accept_link()));
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!((near.peer(), far.peer()), (2, 1));
    (near, far)
}

/// Thousands of messages of all sizes and in many parts arrive in order, in both directions at the same time.
#[tokio::test(start_paused = true)]
async fn in_order() {
    let (rack, _) = Rack::formed(3).await;
    let (near, far) = pair(&rack).await;
    let message = |number: u32| {
        let len = if number % 500 == 7 { 6 << 20 } else { number as usize % 300 };
        let parts = vec![Bytes::copy_from_slice(&number.to_le_bytes()), Bytes::from(vec![number as u8; len])];
        Payload::from_parts(parts)
    };
    let send = |link: crate::LinkSender| async move {
        for number in 0..3000 {
            link.send(message(number)).await.unwrap();
        }
        link
    };
    let receive = |mut link: crate::LinkReceiver| async move {
        for number in 0..3000 {
            assert_eq!(link.recv().await.unwrap(), message(number).to_bytes());
        }
        link
    };
    let ((near, near_end), (far, far_end)) = (near.split(), far.split());
    let all = async { tokio::join!(send(near), send(far), receive(near_end), receive(far_end)) };
    let (near, _far, near_end, far_end) = within(all).await;
    drop((near, near_end));
    assert!(receive_all(far_end).await.is_empty());
}

async fn receive_all(mut link: crate::LinkReceiver) -> Vec<Bytes> {
    let mut all = Vec::new();
    while let Some(message) = within(link.recv()).await {
        all.push(message);
    }
    all
}

/// What was sent before the link was dropped still arrives, and then the end.
#[tokio::test(start_paused = true)]
async fn dropped_after_sending() {
    let (rack, _) = Rack::formed(3).await;
    let (near, far) = pair(&rack).await;
    for number in 0..100u8 {
        within(near.send(vec![number; 10_000].into())).await.unwrap();
    }
    drop(near);
    let (_sender, far) = far.split();
    assert_eq!(receive_all(far).await.len(), 100);
}

/// A peer that is killed, and one that is cut off silently, close the link within about a second; sending fails
/// then.
#[tokio::test(start_paused = true)]
async fn breaks() {
    for cut in [false, true] {
        let (mut rack, _) = Rack::formed(3).await;
        let (mut near, _far) = pair(&rack).await;
        let start = Instant::now();
        if cut {
            rack.hub.cut(&address(1), &address(2));
        } else {
            rack.kill(2);
        }
        assert_eq!(within(near.recv()).await, None);
        assert!(start.elapsed() < Duration::from_millis(1200), "{:?}", start.elapsed());
        assert_eq!(within(near.send(Payload::default())).await, Err(LinkClosed::Closed));
        let again = within(rack.node(1).connect(2)).await;
        assert!(matches!(again, Err(LinkError::Unreachable { node: 2, .. })), "{again:?}");
    }
}

/// A peer that does not receive stops the sender after a bounded number of bytes; waiting to receive can be given
/// up at any time; once it receives, everything comes in order.
#[tokio::test(start_paused = true)]
async fn bounded() {
    let (rack, _) = Rack::formed(3).await;
    let (near, mut far) = pair(&rack).await;
    assert!(timeout(Duration::from_millis(10), far.recv()).await.is_err());
    let mut sent = 0u32;
    let mut message = vec![0; 100_000];
    loop {
        message[..4].copy_from_slice(&sent.to_le_bytes());
        match timeout(Duration::from_secs(3), near.send(message.clone().into())).await {
            Ok(result) => result.unwrap(),
            Err(_) => break,
        }
        sent += 1;
        assert!(sent < 110, "more than 11 MB are under way");
    }
    for number in 0..sent {
        let message = within(far.recv()).await.unwrap();
        assert_eq!(message[..4], number.to_le_bytes());
    }
    within(near.send(Payload::default())).await.unwrap();
    assert_eq!(within(far.recv()).await.unwrap(), "");
}

/// There are links to members only, and accepting ends when the node stops.
#[tokio::test(start_paused = true)]
async fn to_members() {
    let (rack, _) = Rack::formed(3).await;
    let refused = within(rack.node(1).connect(9)).await;
    assert_eq!(refused.unwrap_err(), LinkError::NotMember { node: 9 });
    let (stopped, ()) =
        within(async { tokio::join!(rack.node(3).accept_link(), rack.node(3).shutdown()) }).await;
    assert!(stopped.is_none());
}
