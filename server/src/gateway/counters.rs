//! How often each command was received, since this process started. `stats` shows them as `cmd-*`.

use beanpole_protocol::stats::ServerStats;

/// Well-formed commands received by this node, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is the command of its name")]
pub struct Counters {
    pub put: u64,
    pub peek: u64,
    pub peek_ready: u64,
    pub peek_delayed: u64,
    pub peek_buried: u64,
    pub reserve: u64,
    pub reserve_with_timeout: u64,
    pub reserve_job: u64,
    pub delete: u64,
    pub release: u64,
    pub use_tube: u64,
    pub watch: u64,
    pub ignore: u64,
    pub bury: u64,
    pub kick: u64,
    pub kick_job: u64,
    pub touch: u64,
    pub stats: u64,
    pub stats_job: u64,
    pub stats_tube: u64,
    pub list_tubes: u64,
    pub list_tube_used: u64,
    pub list_tubes_watched: u64,
    pub pause_tube: u64,
}

impl Counters {
    /// Copies the counters into the figures of `stats`, which has no keys for `reserve-job` and `kick-job`.
    pub fn fill(&self, stats: &mut ServerStats<'_>) {
        stats.cmd_put = self.put;
        stats.cmd_peek = self.peek;
        stats.cmd_peek_ready = self.peek_ready;
        stats.cmd_peek_delayed = self.peek_delayed;
        stats.cmd_peek_buried = self.peek_buried;
        stats.cmd_reserve = self.reserve;
        stats.cmd_reserve_with_timeout = self.reserve_with_timeout;
        stats.cmd_delete = self.delete;
        stats.cmd_release = self.release;
        stats.cmd_use = self.use_tube;
        stats.cmd_watch = self.watch;
        stats.cmd_ignore = self.ignore;
        stats.cmd_bury = self.bury;
        stats.cmd_kick = self.kick;
        stats.cmd_touch = self.touch;
        stats.cmd_stats = self.stats;
        stats.cmd_stats_job = self.stats_job;
        stats.cmd_stats_tube = self.stats_tube;
        stats.cmd_list_tubes = self.list_tubes;
        stats.cmd_list_tube_used = self.list_tube_used;
        stats.cmd_list_tubes_watched = self.list_tubes_watched;
        stats.cmd_pause_tube = self.pause_tube;
    }

    /// Each counter with its command's name, in the order of beanstalkd's `stats`.
    pub fn each(&self) -> [(&'static str, u64); 24] {
        [
            ("put", self.put),
            ("peek", self.peek),
            ("peek-ready", self.peek_ready),
            ("peek-delayed", self.peek_delayed),
            ("peek-buried", self.peek_buried),
            ("reserve", self.reserve),
            ("reserve-with-timeout", self.reserve_with_timeout),
            ("reserve-job", self.reserve_job),
            ("delete", self.delete),
            ("release", self.release),
            ("use", self.use_tube),
            ("watch", self.watch),
            ("ignore", self.ignore),
            ("bury", self.bury),
            ("kick", self.kick),
            ("kick-job", self.kick_job),
            ("touch", self.touch),
            ("stats", self.stats),
            ("stats-job", self.stats_job),
            ("stats-tube", self.stats_tube),
            ("list-tubes", self.list_tubes),
            ("list-tube-used", self.list_tube_used),
            ("list-tubes-watched", self.list_tubes_watched),
            ("pause-tube", self.pause_tube),
        ]
    }
}
