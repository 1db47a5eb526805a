//! The way to peers as openraft sees it. A lone voter has none: every call says so.
//!
//! Appends are pipelined: many requests of a stream are under way on the peer's line, bounded in number and
//! bytes, and answered in order. Heartbeats are streams of one request that overtake appends.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream, StreamExt, unfold};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use crate::cluster::Cluster;
use crate::forward;
use crate::frame::FrameKind;
use crate::message;
use crate::peer::{CallError, Down, Line, Pending};
use crate::snapshot::SnapshotFile;
use crate::types::{Member, RaftSnapshot, TypeConfig, Vote};

/// Appends of one stream that may be under way, in bytes; the first one may be longer.
const STREAM_BYTES_MAX: usize = 8 << 20;
/// The same in requests.
const STREAM_REQUESTS_MAX: usize = 64;

/// Makes [`Client`]s.
pub(crate) struct Network {
    cluster: Option<Arc<Cluster>>,
}

impl Network {
    /// The network of a member of a cluster, or of a lone voter.
    pub(crate) fn new(cluster: Option<Arc<Cluster>>) -> Self {
        Self { cluster }
    }

    fn client(&self, target: u64, node: &Member, append: FrameKind) -> Client {
        let cluster = self.cluster.clone().filter(|_| !node.address.is_empty());
        let line = cluster.map(|cluster| (cluster.line(target, &node.address), cluster));
        Client { id: target, line, append }
    }
}

/// What openraft holds of one peer, one for each of its tasks.
pub(crate) struct Client {
    id: u64,
    line: Option<(Arc<Line>, Arc<Cluster>)>,
    /// How entries travel: pipelined, or ahead of them.
    append: FrameKind,
}

type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, FrameKind::Append)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Client {
        self.client(target, node, FrameKind::Heartbeat)
    }
}

impl Client {
    fn line(&self) -> Result<&Arc<Line>, RPCError<TypeConfig>> {
        match &self.line {
            Some((line, _)) => Ok(line),
            None => Err(RPCError::Unreachable(self.unreachable("there is no transport"))),
        }
    }

    fn unreachable(&self, why: &str) -> Unreachable<TypeConfig> {
        Unreachable::from_string(format!("node {}: {why}", self.id))
    }

    async fn call(
        &self,
        kind: FrameKind,
        body: bytes::Bytes,
        limit: Duration,
    ) -> Result<bytes::Bytes, RPCError<TypeConfig>> {
        let line = self.line()?;
        line.call(kind, body, limit).await.map_err(|error| match error {
            CallError::Down(Down { why }) => RPCError::Unreachable(self.unreachable(&why)),
            CallError::Late => {
                let (id, target) = (self.id, self.id);
                RPCError::Timeout(Timeout { action: RPCTypes::Vote, id, target, timeout: limit })
            }
        })
    }
}

/// An answer that this release cannot read.
fn garbled() -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::from_string("an answer that makes no sense"))
}

impl RaftNetworkV2<TypeConfig> for Client {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let single = Box::pin(futures_util::stream::once(async { rpc }));
        let mut answers = RaftNetworkV2::stream_append(self, single, option).await?;
        match answers.next().await {
            Some(answer) => answer.map(Into::into),
            None => Err(garbled()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        Box::pin(async move {
            let line = self.line()?.clone();
            let up = line.wait_up(option.soft_ttl()).await;
            up.map_err(|down| RPCError::Unreachable(self.unreachable(&down.why)))?;
            let stream = line.new_id();
            let under_way = UnderWay { requests: VecDeque::new(), bytes: 0 };
            let appends = Appends { client: self, line, stream, input, input_ended: false, under_way };
            let answers = unfold(Some(appends), |appends| async {
                let mut appends = appends?;
                let answer = appends.next().await?;
                // A failure or a conflict ends the stream: what is under way behind it is void.
                let more = matches!(answer, Ok(Ok(_)));
                Some((answer, more.then_some(appends)))
            });
            Ok(answers.boxed())
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = self.call(FrameKind::Vote, message::encode_vote(&rpc), option.soft_ttl()).await?;
        message::decode_voted(answer).ok_or_else(garbled)
    }

    /// The default grants unconditionally, which would make pre-vote void.
    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = self.call(FrameKind::PreVote, message::encode_vote(&rpc), option.soft_ttl()).await?;
        message::decode_voted(answer).ok_or_else(garbled)
    }

    /// The seam for sending a snapshot: a connection of its own is opened with
    /// [`crate::hello::Purpose::Snapshot`] and accepted in `serve.rs`. Until something is put there a follower
    /// can be brought forward by log only.
    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: RaftSnapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let Some((line, cluster)) = &self.line else {
            return Err(StreamingError::Unreachable(self.unreachable("there is no transport")));
        };
        let sent = forward::send(cluster, line.peer, &line.address, vote, &snapshot.snapshot);
        let sent = tokio::select! {
            sent = sent => Ok(sent),
            closed = cancel => Err(closed),
        };
        cluster.note_transfer(line.peer, None);
        let sent = match sent {
            Ok(sent) => sent,
            Err(closed) => return Err(StreamingError::Closed(closed)),
        };
        sent.map_err(|error| {
            tracing::warn!(node = cluster.node, peer = line.peer, %error, "a snapshot was not sent; it is tried again");
            StreamingError::Unreachable(self.unreachable(&error.to_string()))
        })
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer =
            self.call(FrameKind::Handover, message::encode_handover(&req), option.soft_ttl()).await?;
        message::decode_taken(answer, &req).ok_or_else(garbled)
    }

    /// The line itself waits before it connects again, so openraft need not wait long.
    fn backoff(&self) -> Option<Backoff> {
        let first = [20, 50].into_iter().map(Duration::from_millis);
        Some(Backoff::new(first.chain(std::iter::repeat(Duration::from_millis(100)))))
    }
}

/// Requests that were sent and not answered yet.
struct UnderWay {
    requests: VecDeque<(usize, Pending)>,
    bytes: usize,
}

impl UnderWay {
    fn has_room(&self) -> bool {
        self.requests.len() < STREAM_REQUESTS_MAX && self.bytes < STREAM_BYTES_MAX
    }

    /// The answer to the oldest one.
    async fn oldest(&mut self) -> Result<bytes::Bytes, Down> {
        let Some((len, pending)) = self.requests.front_mut() else { return std::future::pending().await };
        let answer = pending.await;
        self.bytes -= *len;
        self.requests.pop_front();
        answer
    }
}

/// One stream of appends to a peer.
struct Appends<'s, S> {
    client: &'s Client,
    line: Arc<Line>,
    stream: u64,
    input: S,
    input_ended: bool,
    under_way: UnderWay,
}

impl<S> Appends<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    /// Sends what there is to send until the next answer.
    async fn next(&mut self) -> Option<AppendResult> {
        loop {
            if self.input_ended && self.under_way.requests.is_empty() {
                return None;
            }
            let sends = !self.input_ended && self.under_way.has_room();
            tokio::select! {
                biased;
                answer = self.under_way.oldest() => return Some(self.answered(answer)),
                request = self.input.next(), if sends => match request {
                    Some(request) => {
                        if let Err(down) = self.send(&request) {
                            return Some(Err(RPCError::Unreachable(self.client.unreachable(&down.why))));
                        }
                    }
                    None => self.input_ended = true,
                },
            }
        }
    }

    fn send(&mut self, request: &AppendEntriesRequest<TypeConfig>) -> Result<(), Down> {
        let parts = message::encode_append(self.stream, request);
        let len = parts.iter().map(bytes::Bytes::len).sum();
        let pending = self.line.request(self.client.append, parts)?;
        self.under_way.requests.push_back((len, pending));
        self.under_way.bytes += len;
        Ok(())
    }

    fn answered(&self, answer: Result<bytes::Bytes, Down>) -> AppendResult {
        let body = answer.map_err(|down| RPCError::Unreachable(self.client.unreachable(&down.why)))?;
        let result = message::decode_appended(body).ok_or_else(garbled)?;
        if let (Ok(Some(matching)), Some((_, cluster))) = (&result, &self.client.line) {
            cluster.acknowledged(self.client.id, (*matching).into());
        }
        Ok(result)
    }
}
