//! Alarms, as operators meet them: raised, told once, shown by the verbs, cleared.

use std::time::{Duration, Instant};

use beanpole_tests::cluster::Cluster;
use beanpole_tests::server::{Server, Setup};
use beanpole_tests::{operator, wait};

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");

/// Within this a loss of redundancy is told.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// What a machine that others use may add to it.
const SLACK: Duration = Duration::from_secs(5);

#[test]
fn a_missing_node_raises_an_alarm_within_ten_seconds_and_its_return_clears_it() {
    let mut cluster = Cluster::start(BIN, 3);
    let leader = cluster.leader();
    let (away, other) = (cluster.others(leader)[0], cluster.others(leader)[1]);
    cluster.operate("cluster health --watch --exit-when-healthy --timeout 20");
    cluster.kill(away);
    let killed = Instant::now();
    let metric = "beanpole_alarm{name=\"redundancy-lost\"} 1";
    let raised = |cluster: &Cluster, id: u64| {
        cluster.get(id, "/metrics").is_some_and(|(_, text)| text.contains(metric)).then(|| killed.elapsed())
    };
    let took = [leader, other].map(|id| {
        let took = wait::until_within(TOLD_WITHIN + SLACK, || raised(&cluster, id));
        took.unwrap_or_else(|| panic!("n{id} raises no alarm: {}", cluster.log(id)))
    });
    println!("redundancy lost: told after {took:?}");
    let told = cluster.operator("cluster health");
    assert_eq!(told.code, Some(1), "{}", told.text);
    assert!(told.text.contains("critical: redundancy-lost: quorum margin 0: 2 of 3 voters"), "{}", told.text);
    assert!(told.text.contains(&format!("node {away} is silent")), "{}", told.text);
    assert_eq!(cluster.operator(&format!("node health {other}")).code, Some(1));
    cluster.start_node(away);
    cluster.wait_until_ready(&cluster.ids());
    let healthy = cluster.operate("cluster health --watch --exit-when-healthy --timeout 30");
    assert!(healthy.trim_end().ends_with("healthy"), "{healthy}");
    assert_eq!(cluster.operate(&format!("node health {other}")).trim(), format!("node {other} has no alarm"));
    for (what, times) in [("alarm raised: redundancy-lost", 1), ("alarm cleared: redundancy-lost", 1)] {
        assert_eq!(cluster.log(other).matches(what).count(), times, "{what}: {}", cluster.log(other));
    }
}

#[test]
fn a_job_that_waits_for_too_long_raises_an_alarm_for_its_tube() {
    let server = Server::start(&Setup::beanpole(BIN));
    let admin = server.admin_addr().to_string();
    assert_eq!(
        operator::succeed(BIN, &admin, "policy set mails-* --alarm-ready-age 1s"),
        "mails-*: alarm-ready-age 1s"
    );
    let mut client = server.connect();
    for tube in ["mails-a", "other"] {
        client.command(&format!("use {tube}")).unwrap();
        client.put(0, 0, 60, b"job").unwrap();
    }
    let health = || operator::run(BIN, &admin, "cluster health");
    let raised = wait::until(|| (server.metric("beanpole_alarm{name=\"ready-age\"}") == 1).then_some(()));
    assert!(raised.is_some(), "{}", server.stderr());
    let (code, text) = health();
    assert!(code == 0 && text.starts_with("healthy"), "it is a warning: {text}");
    assert!(text.contains("warning: ready-age (mails-a): a job has been ready for"), "{text}");
    assert!(text.contains("longer than 1s; 1 are ready") && !text.contains("other"), "{text}");
    assert!(server.get("/api/v1/alarms").contains("\"name\":\"ready-age\",\"about\":\"mails-a\""));
    client.command("watch mails-a").unwrap();
    let id = client.command("reserve").unwrap().number();
    client.command(&format!("delete {id}")).unwrap();
    let cleared = wait::until(|| (health() == (0, "healthy".to_owned())).then_some(()));
    assert!(cleared.is_some(), "{}", server.stderr());
    let said = server.stderr();
    assert_eq!(said.matches("alarm raised: ready-age (mails-a)").count(), 1, "{said}");
    assert_eq!(said.matches("alarm cleared: ready-age (mails-a), after").count(), 1, "{said}");
    assert!(server.get("/api/v1/events").contains("alarm raised: ready-age (mails-a)"));
}
