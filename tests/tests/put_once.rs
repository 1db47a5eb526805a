//! Puts with a key: sent again by a client that does not know, through another node, after the leader died.

use beanpole_tests::cluster::Cluster;
use beanpole_tests::connection::Connection;
use beanpole_tests::wait;

const BIN: &str = env!("CARGO_BIN_EXE_beanpole-under-test");
/// Jobs to be put.
const JOBS: usize = 300;

fn send(client: &mut Connection, number: usize) -> std::io::Result<u64> {
    client.send(format!("put-once order:{number} 5 0 60 4\r\n{number:04}\r\n").as_bytes())?;
    let reply = client.reply()?;
    assert_eq!(reply.word(), "INSERTED", "{}", reply.line);
    Ok(reply.number())
}

/// Each job is sent until it is answered, and a time or two more; the node that it is sent to dies again and again.
#[test]
fn whoever_dies_there_is_one_job_for_each_key() {
    let mut cluster = Cluster::start(BIN, 3);
    let mut ids = Vec::new();
    let mut node = cluster.leader();
    let mut client = cluster.connect(node);
    // A cluster that has just begun may not know yet that all members understand it.
    let begun = wait::until(|| {
        client.send(b"put-once order:0 5 0 60 4\r\n0000\r\n").unwrap();
        (client.reply().unwrap().word() == "INSERTED").then_some(())
    });
    assert!(begun.is_some());
    for number in 0..JOBS {
        let mut sent = send(&mut client, number);
        if number % 60 == 30 {
            // The next one is on its way when its node dies.
            let last = format!("put-once order:{} 5 0 60 4\r\n{:04}\r\n", number + 1, number + 1);
            client.send(last.as_bytes()).unwrap();
            cluster.kill(node);
            let dead = node;
            node = cluster.others(dead)[0];
            client = cluster.connect(node);
            sent = send(&mut client, number);
            cluster.start_node(dead);
            cluster.wait_until_ready(&cluster.ids());
        }
        ids.push(sent.unwrap());
    }
    let other = cluster.others(node)[1];
    let mut client = cluster.connect(other);
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(send(&mut client, number).unwrap(), *id, "order {number}");
    }
    let reply = client.command("stats").unwrap();
    assert_eq!(reply.stat("current-jobs-ready").as_deref(), Some("300"));
    assert!(cluster.operate("cluster verify").contains("all nodes have the same state"));
    assert_eq!(
        cluster.operate("cluster put-once --window 1h --keys 100"),
        "a key is known for 1h, and 100 keys at most; 300 are kept\n"
    );
}
