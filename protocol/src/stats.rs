//! The YAML bodies of `stats`, `stats-tube`, `stats-job` and the lists: key order and quoting of beanstalkd
//! 1.13, all keys always there, further keys only at the end.

use std::fmt::Write;
use std::time::Duration;

use crate::values::JobId;

/// Room for the largest body but a list's: `stats` has some 1,300 bytes.
const BODY_CAPACITY: usize = 1536;

/// Collects `key: value` lines after the document's start.
struct Yaml(String);

impl Yaml {
    fn new() -> Self {
        let mut body = String::with_capacity(BODY_CAPACITY);
        body.push_str("---\n");
        Yaml(body)
    }

    fn plain(&mut self, key: &str, value: impl std::fmt::Display) -> &mut Self {
        writeln!(self.0, "{key}: {value}").expect("a String takes everything");
        self
    }

    /// A text in double quotes, as 1.13 writes them. beanstalkd escapes nothing; here a name of the system's
    /// that holds a quote still gives a body that can be read.
    fn quoted(&mut self, key: &str, value: &str) -> &mut Self {
        self.0.push_str(key);
        self.0.push_str(": \"");
        for c in value.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                '\0'..='\x1f' | '\x7f' => {
                    write!(self.0, "\\x{:02x}", u32::from(c)).expect("a String takes everything");
                }
                _ => self.0.push(c),
            }
        }
        self.0.push_str("\"\n");
        self
    }

    /// Seconds with six decimals, as `rusage-*` has them.
    fn seconds(&mut self, key: &str, value: Duration) -> &mut Self {
        self.plain(key, format_args!("{}.{:06}", value.as_secs(), value.subsec_micros()))
    }
}

/// The body of `list-tubes` and `list-tubes-watched`. The names are not quoted, in 1.13 neither: `- 123` and
/// `- true` are what clients know.
#[must_use]
pub fn list_body<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut body = "---\n".to_owned();
    for name in names {
        body.push_str("- ");
        body.push_str(name);
        body.push('\n');
    }
    body
}

/// The figures of `stats`. Each field is the key of its name, with `-` for `_`. Times are whole seconds
/// unless typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStats<'a> {
    /// Ready jobs with a priority below [`URGENT_BELOW`](crate::URGENT_BELOW).
    pub current_jobs_urgent: u64,
    /// Ready jobs.
    pub current_jobs_ready: u64,
    /// Jobs held by workers.
    pub current_jobs_reserved: u64,
    /// Delayed jobs.
    pub current_jobs_delayed: u64,
    /// Buried jobs.
    pub current_jobs_buried: u64,
    /// Well-formed `put` commands.
    pub cmd_put: u64,
    /// Well-formed `peek` commands.
    pub cmd_peek: u64,
    /// Well-formed `peek-ready` commands.
    pub cmd_peek_ready: u64,
    /// Well-formed `peek-delayed` commands.
    pub cmd_peek_delayed: u64,
    /// Well-formed `peek-buried` commands.
    pub cmd_peek_buried: u64,
    /// Well-formed `reserve` commands.
    pub cmd_reserve: u64,
    /// Well-formed `reserve-with-timeout` commands.
    pub cmd_reserve_with_timeout: u64,
    /// Well-formed `delete` commands.
    pub cmd_delete: u64,
    /// Well-formed `release` commands.
    pub cmd_release: u64,
    /// Well-formed `use` commands.
    pub cmd_use: u64,
    /// Well-formed `watch` commands.
    pub cmd_watch: u64,
    /// Well-formed `ignore` commands.
    pub cmd_ignore: u64,
    /// Well-formed `bury` commands.
    pub cmd_bury: u64,
    /// Well-formed `kick` commands.
    pub cmd_kick: u64,
    /// Well-formed `touch` commands.
    pub cmd_touch: u64,
    /// Well-formed `stats` commands.
    pub cmd_stats: u64,
    /// Well-formed `stats-job` commands.
    pub cmd_stats_job: u64,
    /// Well-formed `stats-tube` commands.
    pub cmd_stats_tube: u64,
    /// Well-formed `list-tubes` commands.
    pub cmd_list_tubes: u64,
    /// Well-formed `list-tube-used` commands.
    pub cmd_list_tube_used: u64,
    /// Well-formed `list-tubes-watched` commands.
    pub cmd_list_tubes_watched: u64,
    /// Well-formed `pause-tube` commands.
    pub cmd_pause_tube: u64,
    /// Reservations that ran out of time, ever.
    pub job_timeouts: u64,
    /// Jobs put, ever.
    pub total_jobs: u64,
    /// Largest body allowed, in bytes.
    pub max_job_size: u64,
    /// Tubes that exist.
    pub current_tubes: u64,
    /// Open connections.
    pub current_connections: u64,
    /// Open connections that have sent a `put`.
    pub current_producers: u64,
    /// Open connections that have sent a reserve of any kind.
    pub current_workers: u64,
    /// Open connections that wait for a job.
    pub current_waiting: u64,
    /// Connections, ever.
    pub total_connections: u64,
    /// The process id.
    pub pid: u32,
    /// The server's version.
    pub version: &'a str,
    /// Processor time in user mode.
    pub rusage_utime: Duration,
    /// Processor time in the kernel.
    pub rusage_stime: Duration,
    /// Seconds since the process started.
    pub uptime: u64,
    /// The oldest part of the log that is still needed.
    pub binlog_oldest_index: u64,
    /// The part of the log that is written to.
    pub binlog_current_index: u64,
    /// Records written again by compaction.
    pub binlog_records_migrated: u64,
    /// Records written.
    pub binlog_records_written: u64,
    /// Largest size of one part of the log, in bytes.
    pub binlog_max_size: u64,
    /// Whether new jobs are refused.
    pub draining: bool,
    /// Random name of this process: 16 hexadecimal digits that YAML does not take for a number (neither all
    /// decimal nor `<digits>e<digits>`), as it stands unquoted.
    pub id: &'a str,
    /// The machine, as `uname -n` says.
    pub hostname: &'a str,
    /// The kernel, as `uname -v` says.
    pub os: &'a str,
    /// The architecture, as `uname -m` says.
    pub platform: &'a str,
}

impl ServerStats<'_> {
    /// The body.
    #[must_use]
    pub fn body(&self) -> String {
        let mut yaml = Yaml::new();
        self.jobs_and_commands(&mut yaml);
        self.server(&mut yaml);
        yaml.0
    }

    fn jobs_and_commands(&self, yaml: &mut Yaml) {
        yaml.plain("current-jobs-urgent", self.current_jobs_urgent)
            .plain("current-jobs-ready", self.current_jobs_ready)
            .plain("current-jobs-reserved", self.current_jobs_reserved)
            .plain("current-jobs-delayed", self.current_jobs_delayed)
            .plain("current-jobs-buried", self.current_jobs_buried)
            .plain("cmd-put", self.cmd_put)
            .plain("cmd-peek", self.cmd_peek)
            .plain("cmd-peek-ready", self.cmd_peek_ready)
            .plain("cmd-peek-delayed", self.cmd_peek_delayed)
            .plain("cmd-peek-buried", self.cmd_peek_buried)
            .plain("cmd-reserve", self.cmd_reserve)
            .plain("cmd-reserve-with-timeout", self.cmd_reserve_with_timeout)
            .plain("cmd-delete", self.cmd_delete)
            .plain("cmd-release", self.cmd_release)
            .plain("cmd-use", self.cmd_use)
            .plain("cmd-watch", self.cmd_watch)
            .plain("cmd-ignore", self.cmd_ignore)
            .plain("cmd-bury", self.cmd_bury)
            .plain("cmd-kick", self.cmd_kick)
            .plain("cmd-touch", self.cmd_touch)
            .plain("cmd-stats", self.cmd_stats)
            .plain("cmd-stats-job", self.cmd_stats_job)
            .plain("cmd-stats-tube", self.cmd_stats_tube)
            .plain("cmd-list-tubes", self.cmd_list_tubes)
            .plain("cmd-list-tube-used", self.cmd_list_tube_used)
            .plain("cmd-list-tubes-watched", self.cmd_list_tubes_watched)
            .plain("cmd-pause-tube", self.cmd_pause_tube);
    }

    fn server(&self, yaml: &mut Yaml) {
        yaml.plain("job-timeouts", self.job_timeouts)
            .plain("total-jobs", self.total_jobs)
            .plain("max-job-size", self.max_job_size)
            .plain("current-tubes", self.current_tubes)
            .plain("current-connections", self.current_connections)
            .plain("current-producers", self.current_producers)
            .plain("current-workers", self.current_workers)
            .plain("current-waiting", self.current_waiting)
            .plain("total-connections", self.total_connections)
            .plain("pid", self.pid)
            .quoted("version", self.version)
            .seconds("rusage-utime", self.rusage_utime)
            .seconds("rusage-stime", self.rusage_stime)
            .plain("uptime", self.uptime)
            .plain("binlog-oldest-index", self.binlog_oldest_index)
            .plain("binlog-current-index", self.binlog_current_index)
            .plain("binlog-records-migrated", self.binlog_records_migrated)
            .plain("binlog-records-written", self.binlog_records_written)
            .plain("binlog-max-size", self.binlog_max_size)
            .plain("draining", self.draining)
            .plain("id", self.id)
            .quoted("hostname", self.hostname)
            .quoted("os", self.os)
            .quoted("platform", self.platform);
    }
}

/// The figures of `stats-tube`. Each field is the key of its name, with `-` for `_`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TubeStats<'a> {
    /// The tube.
    pub name: &'a str,
    /// Ready jobs with a priority below [`URGENT_BELOW`](crate::URGENT_BELOW).
    pub current_jobs_urgent: u64,
    /// Ready jobs.
    pub current_jobs_ready: u64,
    /// Jobs held by workers.
    pub current_jobs_reserved: u64,
    /// Delayed jobs.
    pub current_jobs_delayed: u64,
    /// Buried jobs.
    pub current_jobs_buried: u64,
    /// Jobs put into it, ever.
    pub total_jobs: u64,
    /// Open connections that use it.
    pub current_using: u64,
    /// Open connections that watch it.
    pub current_watching: u64,
    /// Open connections that wait for a job of it.
    pub current_waiting: u64,
    /// Jobs of it deleted, ever.
    pub cmd_delete: u64,
    /// Pauses of it, ever.
    pub cmd_pause_tube: u64,
    /// Length of the pause that it is in, in seconds; 0 without one.
    pub pause: u64,
    /// Seconds of the pause that are left.
    pub pause_time_left: u64,
}

impl TubeStats<'_> {
    /// The body.
    #[must_use]
    pub fn body(&self) -> String {
        let mut yaml = Yaml::new();
        yaml.quoted("name", self.name)
            .plain("current-jobs-urgent", self.current_jobs_urgent)
            .plain("current-jobs-ready", self.current_jobs_ready)
            .plain("current-jobs-reserved", self.current_jobs_reserved)
            .plain("current-jobs-delayed", self.current_jobs_delayed)
            .plain("current-jobs-buried", self.current_jobs_buried)
            .plain("total-jobs", self.total_jobs)
            .plain("current-using", self.current_using)
            .plain("current-watching", self.current_watching)
            .plain("current-waiting", self.current_waiting)
            .plain("cmd-delete", self.cmd_delete)
            .plain("cmd-pause-tube", self.cmd_pause_tube)
            .plain("pause", self.pause)
            .plain("pause-time-left", self.pause_time_left);
        yaml.0
    }
}

/// The figures of `stats-job`. Each field is the key of its name, with `-` for `_`. Times are whole seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobStats<'a> {
    /// The job.
    pub id: JobId,
    /// Its tube.
    pub tube: &'a str,
    /// `ready`, `reserved`, `delayed` or `buried`.
    pub state: &'a str,
    /// Its priority.
    pub pri: u32,
    /// Seconds since it was put.
    pub age: u64,
    /// Seconds of the delay it was last put or released with.
    pub delay: u32,
    /// Seconds a worker may hold it.
    pub ttr: u32,
    /// Seconds until a reserved job times out or a delayed one is ready; else 0.
    pub time_left: u64,
    /// Where beanstalkd keeps it; 0 for nowhere.
    pub file: u64,
    /// Times it was reserved.
    pub reserves: u32,
    /// Times a reservation of it ran out of time.
    pub timeouts: u32,
    /// Times it was released.
    pub releases: u32,
    /// Times it was buried.
    pub buries: u32,
    /// Times it was kicked.
    pub kicks: u32,
    /// How many jobs it descends from; a key of its own, and only if it is not 0.
    pub hops: u8,
    /// What a tube's policy did with it; a key of its own, and only if there is one.
    pub reason: Option<&'a str>,
}

impl JobStats<'_> {
    /// The body.
    #[must_use]
    pub fn body(&self) -> String {
        let mut yaml = Yaml::new();
        yaml.plain("id", self.id)
            .quoted("tube", self.tube)
            .plain("state", self.state)
            .plain("pri", self.pri)
            .plain("age", self.age)
            .plain("delay", self.delay)
            .plain("ttr", self.ttr)
            .plain("time-left", self.time_left)
            .plain("file", self.file)
            .plain("reserves", self.reserves)
            .plain("timeouts", self.timeouts)
            .plain("releases", self.releases)
            .plain("buries", self.buries)
            .plain("kicks", self.kicks);
        if self.hops > 0 {
            yaml.plain("hops", self.hops);
        }
        if let Some(reason) = self.reason {
            yaml.plain("reason", reason);
        }
        yaml.0
    }
}
