//! A working day of the Rust client `beanstalkc`: arguments are host and port. Panics on the first surprise.

use std::time::Duration;

use beanstalkc::Beanstalkc;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let host = arguments.next().expect("usage: beanstalkc-session HOST PORT");
    let port: u16 = arguments.next().and_then(|port| port.parse().ok()).expect("a port");
    let connect = || Beanstalkc::new().host(&host).port(port).connect().expect("the server accepts");
    jobs(&mut connect());
    tubes(&mut connect());
    many(connect);
    println!("  beanstalkc jobs, tubes, many: ok");
}

fn jobs(client: &mut Beanstalkc) {
    let short = Duration::from_secs(1);
    let id = client.put(b"hello", 10, Duration::ZERO, Duration::from_secs(60)).unwrap();
    let mut job = client.reserve_with_timeout(short).unwrap();
    assert_eq!((job.id(), job.body()), (id, b"hello".as_slice()));
    job.touch().unwrap();
    assert_eq!(job.stats().unwrap()["state"], "reserved");
    job.release(5, Duration::from_secs(100)).unwrap();
    assert_eq!(client.stats_job(id).unwrap()["pri"], "5");
    assert_eq!(client.peek_delayed().unwrap().id(), id);
    assert_eq!(client.kick(10).unwrap(), 1);
    let mut job = client.reserve().unwrap();
    job.bury(3).unwrap();
    assert_eq!(client.peek_buried().unwrap().id(), id);
    client.kick_job(id).unwrap();
    assert_eq!(client.peek_ready().unwrap().body(), b"hello");
    client.delete(id).unwrap();
    assert!(client.peek(id).is_err());
    assert!(client.reserve_with_timeout(Duration::ZERO).is_err());
}

fn tubes(client: &mut Beanstalkc) {
    client.use_tube("rust").unwrap();
    assert_eq!(client.using().unwrap(), "rust");
    assert_eq!(client.watch("rust").unwrap(), 2);
    assert_eq!(client.ignore("default").unwrap(), 1);
    assert_eq!(client.watching().unwrap(), ["rust"]);
    assert!(client.tubes().unwrap().contains(&"rust".to_string()));
    let id = client.put_default(b"in a tube").unwrap();
    client.pause_tube("rust", Duration::from_secs(100)).unwrap();
    assert!(client.reserve_with_timeout(Duration::ZERO).is_err());
    assert_eq!(client.stats_tube("rust").unwrap()["pause"], "100");
    client.pause_tube("rust", Duration::ZERO).unwrap();
    assert_eq!(client.reserve().unwrap().id(), id);
    client.delete(id).unwrap();
    assert_eq!(client.stats().unwrap()["current-jobs-ready"], "0");
}

/// Four producers and four workers, a thousand jobs, each done once.
fn many(connect: impl Fn() -> Beanstalkc + Sync) {
    let (producers, jobs_each) = (4, 250);
    let mut done: Vec<String> = std::thread::scope(|scope| {
        for producer in 0..producers {
            let connect = &connect;
            scope.spawn(move || {
                let mut client = connect();
                for job in 0..jobs_each {
                    client.put_default(format!("{producer}-{job}").as_bytes()).unwrap();
                }
            });
        }
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = connect();
                    let mut done = Vec::new();
                    while let Ok(mut job) = client.reserve_with_timeout(Duration::from_secs(2)) {
                        done.push(String::from_utf8(job.body().to_vec()).unwrap());
                        job.delete().unwrap();
                    }
                    done
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    done.sort();
    done.dedup();
    assert_eq!(done.len(), producers * jobs_each);
}
