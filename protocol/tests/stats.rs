//! The YAML bodies, letter by letter: the keys and their order as probed on beanstalkd, the quotes as 1.13
//! has them.

use std::time::Duration;

use beanpole_protocol::stats::{JobStats, ServerStats, TubeStats, list_body};
use beanpole_protocol::{JobId, Reply};
use bytes::BytesMut;

/// Every figure is another number, so that no two keys can be mixed up.
fn server_stats() -> ServerStats<'static> {
    ServerStats {
        current_jobs_urgent: 1,
        current_jobs_ready: 2,
        current_jobs_reserved: 3,
        current_jobs_delayed: 4,
        current_jobs_buried: 5,
        cmd_put: 6,
        cmd_peek: 7,
        cmd_peek_ready: 8,
        cmd_peek_delayed: 9,
        cmd_peek_buried: 10,
        cmd_reserve: 11,
        cmd_reserve_with_timeout: 12,
        cmd_delete: 13,
        cmd_release: 14,
        cmd_use: 15,
        cmd_watch: 16,
        cmd_ignore: 17,
        cmd_bury: 18,
        cmd_kick: 19,
        cmd_touch: 20,
        cmd_stats: 21,
        cmd_stats_job: 22,
        cmd_stats_tube: 23,
        cmd_list_tubes: 24,
        cmd_list_tube_used: 25,
        cmd_list_tubes_watched: 26,
        cmd_pause_tube: 27,
        job_timeouts: 28,
        total_jobs: 29,
        max_job_size: 65535,
        current_tubes: 30,
        current_connections: 31,
        current_producers: 32,
        current_workers: 33,
        current_waiting: 34,
        total_connections: 35,
        pid: 36,
        version: "1.13",
        rusage_utime: Duration::from_micros(15_977),
        rusage_stime: Duration::new(37, 5_000),
        uptime: 38,
        binlog_oldest_index: 39,
        binlog_current_index: 40,
        binlog_records_migrated: 41,
        binlog_records_written: 42,
        binlog_max_size: 10_485_760,
        draining: false,
        id: "f5f7e7cb6a1fc6c4",
        hostname: "vm",
        os: "#1 SMP PREEMPT_DYNAMIC @0",
        platform: "x86_64",
    }
}

const SERVER: &str = "---
current-jobs-urgent: 1
current-jobs-ready: 2
current-jobs-reserved: 3
current-jobs-delayed: 4
current-jobs-buried: 5
cmd-put: 6
cmd-peek: 7
cmd-peek-ready: 8
cmd-peek-delayed: 9
cmd-peek-buried: 10
cmd-reserve: 11
cmd-reserve-with-timeout: 12
cmd-delete: 13
cmd-release: 14
cmd-use: 15
cmd-watch: 16
cmd-ignore: 17
cmd-bury: 18
cmd-kick: 19
cmd-touch: 20
cmd-stats: 21
cmd-stats-job: 22
cmd-stats-tube: 23
cmd-list-tubes: 24
cmd-list-tube-used: 25
cmd-list-tubes-watched: 26
cmd-pause-tube: 27
job-timeouts: 28
total-jobs: 29
max-job-size: 65535
current-tubes: 30
current-connections: 31
current-producers: 32
current-workers: 33
current-waiting: 34
total-connections: 35
pid: 36
version: \"1.13\"
rusage-utime: 0.015977
rusage-stime: 37.000005
uptime: 38
binlog-oldest-index: 39
binlog-current-index: 40
binlog-records-migrated: 41
binlog-records-written: 42
binlog-max-size: 10485760
draining: false
id: f5f7e7cb6a1fc6c4
hostname: \"vm\"
os: \"#1 SMP PREEMPT_DYNAMIC @0\"
platform: \"x86_64\"
";

#[test]
fn stats_has_every_key_in_order_and_its_own_keys_last() {
    assert_eq!(server_stats().body(), SERVER);
    let draining = ServerStats { draining: true, ..server_stats() }.body();
    assert_eq!(draining, SERVER.replace("draining: false", "draining: true"));
}

/// No name of a machine may break the body in two, or its YAML.
#[test]
fn a_quoted_text_stays_one_text() {
    let odd = ServerStats { os: "a \"b\" \\c\nd\u{e9}", ..server_stats() }.body();
    assert!(odd.contains("\nos: \"a \\\"b\\\" \\\\c\\x0ad\u{e9}\"\nplatform: "), "{odd}");
}

#[test]
fn stats_tube_has_every_key_in_order() {
    let stats = TubeStats {
        name: "default",
        current_jobs_urgent: 1,
        current_jobs_ready: 2,
        current_jobs_reserved: 3,
        current_jobs_delayed: 4,
        current_jobs_buried: 5,
        total_jobs: 6,
        current_using: 7,
        current_watching: 8,
        current_waiting: 9,
        cmd_delete: 10,
        cmd_pause_tube: 11,
        pause: 12,
        pause_time_left: 13,
    };
    let expected = "---
name: \"default\"
current-jobs-urgent: 1
current-jobs-ready: 2
current-jobs-reserved: 3
current-jobs-delayed: 4
current-jobs-buried: 5
total-jobs: 6
current-using: 7
current-watching: 8
current-waiting: 9
cmd-delete: 10
cmd-pause-tube: 11
pause: 12
pause-time-left: 13
";
    assert_eq!(stats.body(), expected);
}

#[test]
fn stats_job_has_every_key_in_order() {
    let stats = JobStats {
        id: JobId(9),
        tube: "default",
        state: "ready",
        pri: 5,
        age: 1,
        delay: 2,
        ttr: 3,
        time_left: 4,
        file: 0,
        reserves: 6,
        timeouts: 7,
        releases: 8,
        buries: 10,
        kicks: 11,
        hops: 0,
        reason: None,
    };
    let expected = "---
id: 9
tube: \"default\"
state: ready
pri: 5
age: 1
delay: 2
ttr: 3
time-left: 4
file: 0
reserves: 6
timeouts: 7
releases: 8
buries: 10
kicks: 11
";
    assert_eq!(stats.body(), expected);
    // What only Beanpole has comes last, and only if there is something to say.
    let more = JobStats { hops: 2, reason: Some("max-age"), ..stats };
    assert_eq!(more.body(), format!("{expected}hops: 2\nreason: max-age\n"));
}

/// beanstalkd answers `OK 14` for the list of `default` alone: the length leaves out the last CRLF.
#[test]
fn lists_are_plain_names() {
    let body = list_body(["default"].into_iter());
    let mut out = BytesMut::new();
    Reply::Ok(body.as_bytes()).encode(&mut out);
    assert_eq!(out, "OK 14\r\n---\n- default\n\r\n");
    assert_eq!(list_body(["a", "123", "b;c"].into_iter()), "---\n- a\n- 123\n- b;c\n");
    assert_eq!(list_body(std::iter::empty()), "---\n");
}
