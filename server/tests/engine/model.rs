//! The engine once more, naively: vectors, and a look at everything for every question. What it says must be
//! plain to see; it may be as slow as it likes.

use std::sync::Arc;

use beanpole::queue::{
    BODY_OVERHEAD, BulkVerb, Effects, Engine, Gateway, GatewayUp, Handout, JobState, JobView, Outcome,
    Reason, Refused, RefusedWhy, SessionId, Totals, TubeView,
};
use beanpole_raft::{BodyAddr, Payload};

use crate::entries::{Bulk, Cmd, Entry, Offered, Sect};

#[derive(Clone, Debug, PartialEq)]
enum At {
    Ready,
    Delayed { due: u64 },
    Buried { seq: u64 },
    Reserved { session: SessionId, want: u64, deadline: u64, seq: u64 },
}

#[derive(Clone, Debug)]
struct Job {
    id: u64,
    tube: String,
    at: At,
    pri: u32,
    delay: u32,
    ttr: u32,
    created: u64,
    body: BodyAddr,
    reserves: u32,
    timeouts: u32,
    releases: u32,
    buries: u32,
    kicks: u32,
    hops: u8,
}

#[derive(Clone, Debug, Default)]
struct Tube {
    name: String,
    total_jobs: u64,
    cmd_delete: u64,
    cmd_pause: u64,
    /// Seconds and end.
    pause: Option<(u32, u64)>,
}

#[derive(Clone, Debug)]
struct Life {
    gateway: Gateway,
    nonce: u64,
    sequence: u64,
    live: bool,
}

/// See the module.
#[derive(Clone, Default)]
pub struct Model {
    jobs: Vec<Job>,
    tubes: Vec<Tube>,
    lives: Vec<Life>,
    stamp: u64,
    lease: u64,
    pub last_id: u64,
    seq: u64,
    total_jobs: u64,
    timeouts: u64,
    draining: bool,
    /// Begun in this entry, with the ids and the places in the order of burying up to which they go.
    bulks: Vec<(Bulk, u64, u64)>,
    nonces: Vec<u64>,
    level: u32,
}

/// What one entry has going.
struct Now {
    offers: Vec<(Offered, Offering)>,
    effects: Effects,
    ready: Vec<String>,
    lost: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Offering {
    Open,
    Served,
    Closed,
}

impl Model {
    pub fn new() -> Self {
        let tubes = vec![Tube { name: "default".into(), ..Tube::default() }];
        Model { tubes, ..Model::default() }
    }

    pub fn live_gateways(&self) -> Vec<(Gateway, u64)> {
        self.lives.iter().filter(|life| life.live).map(|life| (life.gateway, life.sequence)).collect()
    }

    pub fn clocks(&self) -> (u64, u64) {
        (self.stamp, self.lease)
    }

    pub fn apply(&mut self, index: u64, entry: &Entry, payload: &Payload) -> Effects {
        self.stamp = self.stamp.max(entry.stamp);
        self.lease = self.lease.max(entry.lease);
        let offers = entry.offers.iter().map(|offer| {
            let live = self.is_live(offer.session.gateway());
            (offer.clone(), if live { Offering::Open } else { Offering::Closed })
        });
        let mut now =
            Now { offers: offers.collect(), effects: Effects::default(), ready: vec![], lost: vec![] };
        for _ in 0..1024 {
            if !self.fire_one(&mut now) {
                break;
            }
        }
        let mut bodies = entry.bodies(index, payload).into_iter();
        for section in &entry.sections {
            self.section(&mut now, index, section, &mut bodies);
        }
        self.finish(now)
    }

    fn finish(&mut self, mut now: Now) -> Effects {
        for (bulk, last_id, last_seq) in std::mem::take(&mut self.bulks) {
            self.bulk(&mut now, &bulk, last_id, last_seq);
        }
        for at in 0..now.offers.len() {
            if now.offers[at].1 == Offering::Open {
                self.serve(&mut now, at);
            }
            if now.offers[at].1 != Offering::Served {
                let offer = &now.offers[at].0;
                now.effects.unmatched.push((offer.session, offer.want));
            }
        }
        let ready = now.ready.iter().filter(|name| self.best(name).is_some());
        now.effects.ready_tubes = ready.map(|name| Arc::from(name.as_str())).collect();
        let gone = |name: &&String| {
            *name != "default"
                && self.tubes.iter().any(|tube| tube.name == **name)
                && self.jobs.iter().all(|job| job.tube != **name)
        };
        now.effects.emptied = now.lost.iter().filter(gone).map(|name| Arc::from(name.as_str())).collect();
        now.effects
    }

    // ---- time ----

    fn fire_one(&mut self, now: &mut Now) -> bool {
        let delayed = self
            .jobs
            .iter()
            .filter_map(|job| Some((job.due()?, job.id)))
            .filter(|(due, _)| *due <= self.stamp);
        if let Some((_, id)) = delayed.min() {
            self.make_ready(now, id);
            return true;
        }
        let pauses = self.tubes.iter().enumerate().filter_map(|(at, tube)| Some((tube.pause?.1, at)));
        if let Some((_, at)) = pauses.filter(|(until, _)| *until <= self.stamp).min() {
            self.tubes[at].pause = None;
            let name = self.tubes[at].name.clone();
            self.became_ready(now, &name);
            return true;
        }
        let held = self
            .jobs
            .iter()
            .filter_map(|job| Some((job.deadline()?, job.id)))
            .filter(|(at, _)| *at <= self.lease);
        if let Some((_, id)) = held.min() {
            self.expire(now, id);
            return true;
        }
        false
    }

    fn expire(&mut self, now: &mut Now, id: u64) {
        self.job_mut(id).timeouts += 1;
        self.timeouts += 1;
        self.make_ready(now, id);
    }

    /// What is due for a job a command is about happens before the command.
    fn settle(&mut self, now: &mut Now, id: u64) -> Option<Job> {
        let job = self.jobs.iter().find(|job| job.id == id)?;
        if job.due().is_some_and(|due| due <= self.stamp) {
            self.make_ready(now, id);
        } else if job.deadline().is_some_and(|deadline| deadline <= self.lease) {
            self.expire(now, id);
        }
        Some(self.job_mut(id).clone())
    }

    fn settle_held(&mut self, now: &mut Now, who: SessionId, id: u64) -> Option<Job> {
        self.settle(now, id).filter(|job| matches!(job.at, At::Reserved { session, .. } if session == who))
    }

    // ---- offers ----

    /// What the tube would hand out.
    fn best(&self, name: &str) -> Option<(u32, u64)> {
        if self.tubes.iter().any(|tube| tube.name == name && tube.pause.is_some()) {
            return None;
        }
        let ready = self.jobs.iter().filter(|job| job.tube == name && job.at == At::Ready);
        ready.map(|job| (job.pri, job.id)).min()
    }

    fn became_ready(&mut self, now: &mut Now, tube: &str) {
        while self.best(tube).is_some() {
            let wants = |(offer, state): &(Offered, Offering)| {
                *state == Offering::Open && offer.tubes.iter().any(|name| name == tube)
            };
            let Some(at) = now.offers.iter().position(wants) else {
                if !now.ready.iter().any(|name| name == tube) {
                    now.ready.push(tube.to_owned());
                }
                return;
            };
            self.serve(now, at);
        }
    }

    fn serve(&mut self, now: &mut Now, at: usize) {
        let offer = now.offers[at].0.clone();
        let Some((_, id)) = offer.tubes.iter().filter_map(|tube| self.best(tube)).min() else { return };
        now.offers[at].1 = Offering::Served;
        let body = self.reserve(id, offer.session, offer.want);
        now.effects.handouts.push(Handout { session: offer.session, want: offer.want, id, body });
    }

    fn reserve(&mut self, id: u64, session: SessionId, want: u64) -> BodyAddr {
        self.seq += 1;
        let (seq, lease) = (self.seq, self.lease);
        let job = self.job_mut(id);
        let deadline = lease + u64::from(job.ttr) * 1_000_000;
        job.at = At::Reserved { session, want, deadline, seq };
        job.reserves += 1;
        job.body
    }

    // ---- sections ----

    fn is_live(&self, gateway: Gateway) -> bool {
        self.lives.iter().any(|life| life.live && life.gateway == gateway)
    }

    fn section(
        &mut self,
        now: &mut Now,
        index: u64,
        section: &Sect,
        bodies: &mut impl Iterator<Item = BodyAddr>,
    ) {
        let gateway = section.gateway;
        let mut live = gateway.epoch == 0 || self.admit(now, gateway, section.sequence);
        for command in &section.commands {
            let body = if matches!(command, Cmd::Put { .. }) { bodies.next() } else { None };
            if live {
                self.command(now, index, gateway, command, body);
                live = gateway.epoch == 0 || self.is_live(gateway);
            }
        }
    }

    fn admit(&mut self, now: &mut Now, gateway: Gateway, sequence: u64) -> bool {
        let life = self.lives.iter_mut().find(|life| life.live && life.gateway == gateway);
        let last = life.as_ref().map_or(0, |life| life.sequence);
        let why = match life {
            None => RefusedWhy::NotLive,
            Some(_) if sequence <= last => RefusedWhy::Duplicate,
            Some(_) if sequence > last + 1 => RefusedWhy::Gap,
            Some(life) => {
                life.sequence = sequence;
                now.effects.sequences.push((gateway, sequence));
                return true;
            }
        };
        now.effects.refused.push(Refused { gateway, sequence, last, why });
        false
    }

    fn command(
        &mut self,
        now: &mut Now,
        index: u64,
        gateway: Gateway,
        command: &Cmd,
        body: Option<BodyAddr>,
    ) {
        let who = |conn: u64| SessionId { node: gateway.node, epoch: gateway.epoch, conn };
        let (conn, outcome) = match command {
            Cmd::Up { nonce } => return self.up(now, index, gateway.node, *nonce),
            Cmd::Gone { gateway } => return self.gone(now, *gateway),
            Cmd::TubeGone { tube } => return self.tube_gone(now, tube),
            Cmd::Draining { on } => return self.draining = *on,
            Cmd::Lost { id, body } => return self.body_lost(now, *id, *body),
            Cmd::Level { level } => return self.level = *level,
            Cmd::Policy { .. } | Cmd::PutOnce { .. } | Cmd::OnceWindow { .. } => {
                unreachable!("the model knows neither policies nor keys")
            }
            Cmd::Bulk(bulk) => return self.begin_bulk(bulk),
            Cmd::Closed { conn, undelivered } => return self.closed(now, who(*conn), undelivered),
            Cmd::Unreserve { conn, want, id } => return self.unreserve(now, who(*conn), *want, *id),
            Cmd::Put { conn, tube, pri, delay, ttr, .. } => {
                (conn, self.put(now, who(*conn), tube, [*pri, *delay, *ttr], body.unwrap()))
            }
            Cmd::ReserveJob { conn, id } => (conn, self.reserve_job(now, who(*conn), *id)),
            Cmd::Delete { conn, id } => (conn, self.delete(now, who(*conn), *id)),
            Cmd::Release { conn, id, pri, delay } => (conn, self.release(now, who(*conn), *id, *pri, *delay)),
            Cmd::Bury { conn, id, pri } => (conn, self.bury(now, who(*conn), *id, *pri)),
            Cmd::Touch { conn, id } => (conn, self.touch(now, who(*conn), *id)),
            Cmd::Kick { conn, tube, bound } => (conn, self.kick(now, tube, *bound)),
            Cmd::KickJob { conn, id } => (conn, self.kick_job(now, *id)),
            Cmd::Pause { conn, tube, delay, referenced } => {
                (conn, self.pause(now, tube, *delay, *referenced))
            }
            Cmd::Noop { conn } => (conn, Outcome::Noop),
        };
        now.effects.outcomes.push((who(*conn), outcome));
    }

    fn up(&mut self, now: &mut Now, index: u64, node: u32, nonce: u64) {
        let epoch = match self.lives.iter().find(|life| life.gateway.node == node) {
            Some(life) if life.nonce == nonce => life.gateway.epoch,
            Some(life) => {
                self.gone(now, life.gateway);
                index
            }
            None => index,
        };
        if epoch == index && !self.lives.iter().any(|life| life.gateway == (Gateway { node, epoch })) {
            self.lives.retain(|life| life.gateway.node != node);
            self.lives.push(Life { gateway: Gateway { node, epoch }, nonce, sequence: 0, live: true });
        }
        now.effects.gateways_up.push(GatewayUp { node, nonce, epoch });
    }

    fn gone(&mut self, now: &mut Now, gateway: Gateway) {
        let Some(life) = self.lives.iter_mut().find(|life| life.live && life.gateway == gateway) else {
            return;
        };
        life.live = false;
        self.end_sessions(now, &[], |session| session.gateway() == gateway);
    }

    fn closed(&mut self, now: &mut Now, session: SessionId, undelivered: &[u64]) {
        self.end_sessions(now, undelivered, |other| other == session);
    }

    fn end_sessions(&mut self, now: &mut Now, undelivered: &[u64], which: impl Fn(SessionId) -> bool) {
        for (offer, state) in &mut now.offers {
            if which(offer.session) && *state == Offering::Open {
                *state = Offering::Closed;
            }
        }
        let held = self.jobs.iter().filter_map(|job| {
            let At::Reserved { session, want, deadline, seq } = job.at else { return None };
            which(session).then_some((seq, job.id, want, deadline))
        });
        let mut held: Vec<_> = held.collect();
        held.sort();
        for (_, id, want, deadline) in held {
            if deadline <= self.lease {
                self.expire(now, id);
                continue;
            }
            if want != 0 && undelivered.contains(&want) {
                self.job_mut(id).reserves -= 1;
            }
            self.make_ready(now, id);
        }
    }

    // ---- commands ----

    fn job_mut(&mut self, id: u64) -> &mut Job {
        self.jobs.iter_mut().find(|job| job.id == id).unwrap()
    }

    fn tube_mut(&mut self, name: &str) -> &mut Tube {
        if !self.tubes.iter().any(|tube| tube.name == name) {
            self.tubes.push(Tube { name: name.to_owned(), ..Tube::default() });
        }
        self.tubes.iter_mut().find(|tube| tube.name == name).unwrap()
    }

    fn make_ready(&mut self, now: &mut Now, id: u64) {
        let job = self.job_mut(id);
        job.at = At::Ready;
        let tube = job.tube.clone();
        self.became_ready(now, &tube);
    }

    fn make_ready_after(&mut self, now: &mut Now, id: u64, delay: u32) {
        let due = self.stamp + u64::from(delay) * 1_000_000;
        match delay {
            0 => self.make_ready(now, id),
            _ => self.job_mut(id).at = At::Delayed { due },
        }
    }

    fn put(
        &mut self,
        now: &mut Now,
        who: SessionId,
        tube: &str,
        [pri, delay, ttr]: [u32; 3],
        body: BodyAddr,
    ) -> Outcome {
        if self.draining {
            return Outcome::Draining;
        }
        let held = self.jobs.iter().filter(|job| job.holder() == Some(who) && self.level > 0);
        let hops = held.map(|job| job.hops.saturating_add(1)).max().unwrap_or(0);
        self.tube_mut(tube).total_jobs += 1;
        self.total_jobs += 1;
        self.last_id += 1;
        let id = self.last_id;
        self.jobs.push(Job {
            id,
            tube: tube.to_owned(),
            at: At::Ready,
            pri,
            delay,
            ttr: ttr.max(1),
            // Kept in units of 16 microseconds.
            created: self.stamp - self.stamp % 16,
            body,
            reserves: 0,
            timeouts: 0,
            releases: 0,
            buries: 0,
            kicks: 0,
            hops,
        });
        now.effects.retained.push(body);
        self.make_ready_after(now, id, delay);
        Outcome::Inserted(id)
    }

    fn reserve_job(&mut self, now: &mut Now, who: SessionId, id: u64) -> Outcome {
        match self.settle(now, id) {
            Some(job) if !matches!(job.at, At::Reserved { .. }) => {
                Outcome::Reserved { id, body: self.reserve(id, who, 0) }
            }
            _ => Outcome::NotFound,
        }
    }

    fn delete(&mut self, now: &mut Now, who: SessionId, id: u64) -> Outcome {
        let Some(job) = self.settle(now, id) else { return Outcome::NotFound };
        if matches!(job.at, At::Reserved { session, .. } if session != who) {
            return Outcome::NotFound;
        }
        self.jobs.retain(|job| job.id != id);
        self.tube_mut(&job.tube).cmd_delete += 1;
        now.effects.released.push(job.body);
        if !now.lost.contains(&job.tube) {
            now.lost.push(job.tube);
        }
        Outcome::Deleted
    }

    fn release(&mut self, now: &mut Now, who: SessionId, id: u64, pri: u32, delay: u32) -> Outcome {
        if self.settle_held(now, who, id).is_none() {
            return Outcome::NotFound;
        }
        let job = self.job_mut(id);
        (job.pri, job.delay) = (pri, delay);
        job.releases += 1;
        self.make_ready_after(now, id, delay);
        Outcome::Released
    }

    fn bury(&mut self, now: &mut Now, who: SessionId, id: u64, pri: u32) -> Outcome {
        if self.settle_held(now, who, id).is_none() {
            return Outcome::NotFound;
        }
        self.seq += 1;
        let seq = self.seq;
        let job = self.job_mut(id);
        job.pri = pri;
        job.buries += 1;
        job.at = At::Buried { seq };
        Outcome::Buried
    }

    fn body_lost(&mut self, now: &mut Now, id: u64, body: BodyAddr) {
        let Some(job) = self.settle(now, id) else { return };
        let waits = matches!(job.at, At::Ready | At::Delayed { .. });
        if !waits || (job.body.index, job.body.offset) != (body.index, body.offset) {
            return;
        }
        self.seq += 1;
        let seq = self.seq;
        let job = self.job_mut(id);
        job.buries += 1;
        job.at = At::Buried { seq };
        now.effects.lost.push((id, job.tube.as_str().into()));
    }

    fn touch(&mut self, now: &mut Now, who: SessionId, id: u64) -> Outcome {
        if self.settle_held(now, who, id).is_none() {
            return Outcome::NotFound;
        }
        let lease = self.lease;
        let job = self.job_mut(id);
        let ttr = u64::from(job.ttr) * 1_000_000;
        if let At::Reserved { deadline, .. } = &mut job.at {
            *deadline = lease + ttr;
        }
        Outcome::Touched
    }

    fn unreserve(&mut self, now: &mut Now, who: SessionId, wanted: u64, id: u64) {
        if let Some(job) = self.settle_held(now, who, id)
            && matches!(job.at, At::Reserved { want, .. } if want == wanted && want != 0)
        {
            self.job_mut(id).reserves -= 1;
            self.make_ready(now, id);
        }
    }

    fn kick(&mut self, now: &mut Now, tube: &str, bound: u32) -> Outcome {
        let of_tube = self.jobs.iter().filter(|job| job.tube == tube);
        let buried = of_tube.clone().filter_map(|job| Some((job.buried()?, job.id)));
        let delayed = of_tube.filter_map(|job| Some((job.due()?, job.id)));
        let mut kicked: Vec<_> = buried.collect();
        if kicked.is_empty() {
            kicked = delayed.collect();
        }
        kicked.sort();
        kicked.truncate(bound as usize);
        for (_, id) in &kicked {
            self.job_mut(*id).kicks += 1;
            self.make_ready(now, *id);
        }
        Outcome::Kicked(kicked.len() as u64)
    }

    fn kick_job(&mut self, now: &mut Now, id: u64) -> Outcome {
        match self.settle(now, id) {
            Some(job) if matches!(job.at, At::Buried { .. } | At::Delayed { .. }) => {
                self.job_mut(id).kicks += 1;
                self.make_ready(now, id);
                Outcome::KickedJob
            }
            _ => Outcome::NotFound,
        }
    }

    fn pause(&mut self, now: &mut Now, name: &str, delay: u32, referenced: bool) -> Outcome {
        if !self.tubes.iter().any(|tube| tube.name == name) {
            if !referenced {
                return Outcome::NotFound;
            }
            now.lost.push(name.to_owned());
        }
        let until = self.stamp + u64::from(delay) * 1_000_000;
        let tube = self.tube_mut(name);
        tube.cmd_pause += 1;
        tube.pause = (delay > 0).then_some((delay, until));
        self.became_ready(now, name);
        Outcome::Paused
    }

    fn begin_bulk(&mut self, bulk: &Bulk) {
        if self.nonces.contains(&bulk.nonce) {
            return;
        }
        self.nonces.push(bulk.nonce);
        let mut bulk = bulk.clone();
        let buried = self.jobs.iter().filter(|job| job.tube == bulk.tube && job.buried().is_some()).count();
        if bulk.verb == BulkVerb::Kick {
            let limited = bulk.limit < u64::MAX;
            bulk.states.retain(|state| *state != JobState::Ready);
            if limited {
                bulk.states = vec![if buried > 0 { JobState::Buried } else { JobState::Delayed }];
            }
            let all = self.jobs.iter().filter(|job| job.tube == bulk.tube);
            let all = all.filter(|job| bulk.states.contains(&job.view().state)).count() as u64;
            bulk.limit = bulk.limit.min(all);
        }
        if bulk.verb != BulkVerb::Move || bulk.to != bulk.tube {
            bulk.older_us = self.stamp.saturating_sub(bulk.older_us);
            self.bulks.push((bulk, self.last_id, self.seq));
        }
    }

    /// Fewer jobs than one slice has: it is done at once. `older_us` is the stamp by now.
    fn bulk(&mut self, now: &mut Now, bulk: &Bulk, last_id: u64, last_seq: u64) {
        let mut left = bulk.limit;
        for state in [JobState::Delayed, JobState::Buried, JobState::Ready] {
            let of_tube = self.jobs.iter().filter(|job| job.tube == bulk.tube && job.view().state == state);
            let mut keys: Vec<(u64, u64)> = of_tube.map(|job| (job.place(), job.id)).collect();
            keys.retain(|_| bulk.states.contains(&state));
            keys.sort();
            for (place, id) in keys {
                let job = self.job_mut(id).clone();
                let young = id > last_id || job.created > bulk.older_us;
                let late = state == JobState::Buried && place > last_seq;
                if left == 0 || job.view().state != state || young || late {
                    continue;
                }
                left -= 1;
                self.bulk_one(now, bulk, job);
            }
        }
    }

    fn bulk_one(&mut self, now: &mut Now, bulk: &Bulk, job: Job) {
        let id = job.id;
        match bulk.verb {
            BulkVerb::Purge => {
                self.jobs.retain(|job| job.id != id);
                now.effects.released.push(job.body);
            }
            BulkVerb::Move => {
                self.tube_mut(&bulk.to);
                self.job_mut(id).tube.clone_from(&bulk.to);
                if job.at == At::Ready {
                    self.became_ready(now, &bulk.to);
                }
            }
            BulkVerb::Kick => {
                self.job_mut(id).kicks += 1;
                return self.make_ready(now, id);
            }
            BulkVerb::Expire => unreachable!("nobody asks for it"),
        }
        if !now.lost.contains(&job.tube) {
            now.lost.push(job.tube);
        }
    }

    /// `now.offers` counts as watching, served or not.
    fn tube_gone(&mut self, now: &mut Now, name: &str) {
        let wanted = now.offers.iter().any(|(offer, _)| offer.tubes.iter().any(|tube| tube == name));
        let held = self.jobs.iter().any(|job| job.tube == name);
        if name != "default" && !wanted && !held {
            self.tubes.retain(|tube| tube.name != name);
            now.lost.retain(|tube| tube != name);
            now.ready.retain(|tube| tube != name);
        }
    }

    // ---- comparing ----

    /// Whether the engine shows the same state.
    pub fn assert_same(&self, engine: &Engine) {
        engine.verify().unwrap();
        for id in 0..=self.last_id + 1 {
            let job = self.jobs.iter().find(|job| job.id == id);
            assert_eq!(engine.job(id), job.map(Job::view), "job {id}");
        }
        let names: Vec<&str> = self.tubes.iter().map(|tube| tube.name.as_str()).collect();
        assert_eq!(engine.tube_names().collect::<Vec<_>>(), names);
        let mut totals = Totals {
            total_jobs: self.total_jobs,
            timeouts: self.timeouts,
            tubes: self.tubes.len() as u64,
            ..Totals::default()
        };
        for tube in &self.tubes {
            let view = self.tube_view(tube);
            assert_eq!(engine.tube(tube.name.as_bytes()), Some(view), "tube {}", tube.name);
            totals.urgent += view.urgent;
            totals.ready += view.ready;
            totals.reserved += view.reserved;
            totals.delayed += view.delayed;
            totals.buried += view.buried;
            self.assert_same_peeks(engine, &tube.name);
        }
        assert_eq!(engine.totals(), totals);
        assert_eq!(
            (engine.stamp(), engine.lease(), engine.draining()),
            (self.stamp, self.lease, self.draining)
        );
        self.assert_same_times(engine);
    }

    fn assert_same_peeks(&self, engine: &Engine, tube: &str) {
        let of_tube = || self.jobs.iter().filter(|job| job.tube == tube);
        let ready = of_tube().filter(|job| job.at == At::Ready).map(|job| (job.pri, job.id));
        assert_eq!(engine.peek_ready(tube.as_bytes()), ready.min().map(|(_, id)| id));
        let delayed = of_tube().filter_map(|job| Some((job.due()?, job.id)));
        assert_eq!(engine.peek_delayed(tube.as_bytes()), delayed.min().map(|(_, id)| id));
        let buried = of_tube().filter_map(|job| Some((job.buried()?, job.id)));
        assert_eq!(engine.peek_buried(tube.as_bytes()), buried.min().map(|(_, id)| id));
        let paused = self.tubes.iter().any(|other| other.name == tube && other.pause.is_some());
        let ready = of_tube().filter(|job| job.at == At::Ready && !paused).count();
        assert_eq!(engine.has_ready(tube.as_bytes()), ready);
    }

    fn assert_same_times(&self, engine: &Engine) {
        let dues = || {
            let delayed = self.jobs.iter().filter_map(Job::due);
            delayed.chain(self.tubes.iter().filter_map(|tube| Some(tube.pause?.1)))
        };
        let deadlines = || self.jobs.iter().filter_map(|job| Some((job.holder()?, job.deadline()?)));
        let due = engine.next_due();
        assert_eq!(due.stamp, dues().min());
        assert_eq!(due.lease, deadlines().map(|(_, deadline)| deadline).min());
        let (stamp, lease) = (self.stamp + 3_000_000, self.lease + 3_000_000);
        let firing = dues().filter(|due| *due <= stamp).count()
            + deadlines().filter(|(_, deadline)| *deadline <= lease).count();
        assert_eq!(engine.due_now(stamp, lease), firing.min(1024));
        for life in &self.lives {
            let Gateway { node, epoch } = life.gateway;
            assert_eq!(engine.live_epoch(node), life.live.then_some(epoch));
            assert_eq!(engine.last_sequence(node), life.live.then_some(life.sequence));
            for conn in 0..8 {
                let session = SessionId { node, epoch, conn };
                let own = deadlines().filter(|(holder, _)| *holder == session);
                let first = own.map(|(_, deadline)| deadline).min();
                assert_eq!(engine.session_deadline(session), first);
                assert_eq!(engine.session_holds(session), first.is_some());
            }
        }
    }

    fn tube_view(&self, tube: &Tube) -> TubeView {
        let count = |which: &dyn Fn(&Job) -> bool| {
            self.jobs.iter().filter(|job| job.tube == tube.name && which(job)).count() as u64
        };
        TubeView {
            urgent: count(&|job| job.at == At::Ready && job.pri < 1024),
            ready: count(&|job| job.at == At::Ready),
            reserved: count(&|job| matches!(job.at, At::Reserved { .. })),
            delayed: count(&|job| matches!(job.at, At::Delayed { .. })),
            buried: count(&|job| matches!(job.at, At::Buried { .. })),
            total_jobs: tube.total_jobs,
            cmd_delete: tube.cmd_delete,
            cmd_pause: tube.cmd_pause,
            pause_s: tube.pause.map_or(0, |(seconds, _)| seconds),
            pause_until_us: tube.pause.map_or(0, |(_, until)| until),
            bytes: self.jobs.iter().filter(|job| job.tube == tube.name).map(Job::bytes).sum(),
        }
    }
}

impl Job {
    fn due(&self) -> Option<u64> {
        if let At::Delayed { due } = self.at { Some(due) } else { None }
    }

    fn bytes(&self) -> u64 {
        u64::from(self.body.len) - BODY_OVERHEAD as u64
    }

    /// What orders it among the jobs of its state.
    fn place(&self) -> u64 {
        match self.at {
            At::Ready => u64::from(self.pri),
            At::Delayed { due } => due,
            At::Buried { seq } => seq,
            At::Reserved { deadline, .. } => deadline,
        }
    }

    fn buried(&self) -> Option<u64> {
        if let At::Buried { seq } = self.at { Some(seq) } else { None }
    }

    fn deadline(&self) -> Option<u64> {
        if let At::Reserved { deadline, .. } = self.at { Some(deadline) } else { None }
    }

    fn holder(&self) -> Option<SessionId> {
        if let At::Reserved { session, .. } = self.at { Some(session) } else { None }
    }

    fn view(&self) -> JobView<'_> {
        let (state, due_us, holder) = match self.at {
            At::Ready => (JobState::Ready, 0, None),
            At::Delayed { due } => (JobState::Delayed, due, None),
            At::Buried { .. } => (JobState::Buried, 0, None),
            At::Reserved { session, deadline, .. } => (JobState::Reserved, deadline, Some(session)),
        };
        JobView {
            id: self.id,
            tube: &self.tube,
            state,
            pri: self.pri,
            delay_s: self.delay,
            ttr_s: self.ttr,
            created_us: self.created,
            due_us,
            body: self.body,
            reserves: self.reserves,
            timeouts: self.timeouts,
            releases: self.releases,
            buries: self.buries,
            kicks: self.kicks,
            hops: self.hops,
            reason: Reason::None,
            holder,
        }
    }
}
