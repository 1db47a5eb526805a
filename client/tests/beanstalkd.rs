//! The client against the original. Opt-in, for it needs the program: `cargo test -p beanpole-client --
//! --ignored`. Where there is no beanstalkd the test says so and passes.

use beanpole_client::{Connection, Error, PutOptions, Refusal, Reserve};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A beanstalkd of our own on a Unix socket in a directory of our own: nobody else can be on it.
struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    fn start() -> Option<Server> {
        let program = ["/usr/bin/beanstalkd", "/usr/local/bin/beanstalkd"]
            .into_iter()
            .find(|p| Path::new(p).exists())?;
        let directory = std::env::temp_dir().join(format!("beanpole-client-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let child = Command::new(program)
            .arg("-l")
            .arg(format!("unix:{}/socket", directory.display()))
            .spawn()
            .unwrap();
        Some(Server { child, directory })
    }

    async fn connect(&mut self) -> Connection {
        let address = format!("unix:{}/socket", self.directory.display());
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match Connection::connect(address.as_str()).await {
                Ok(connection) => return connection,
                Err(error) if Instant::now() >= deadline => panic!("{error}"),
                Err(_) => tokio::task::yield_now().await,
            }
            assert!(self.child.try_wait().unwrap().is_none(), "beanstalkd ended");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
#[ignore = "needs beanstalkd"]
fn a_job_goes_through_its_whole_life() {
    let Some(mut server) = Server::start() else {
        eprintln!("skipped: there is no beanstalkd here");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut c = server.connect().await;
        c.use_tube("life").await.unwrap();
        assert_eq!(c.watch("life").await.unwrap(), 2);
        assert_eq!(c.ignore("default").await.unwrap(), 1);
        assert!(matches!(c.ignore("life").await, Err(Error::Refused { refusal: Refusal::NotIgnored, .. })));
        let id = c.put(b"a body\r\nof two lines", PutOptions::default()).await.unwrap();
        assert_eq!(c.peek_ready().await.unwrap().id, id);
        let Reserve::Job(job) = c.reserve().await.unwrap() else { panic!("there is a job") };
        assert_eq!((job.id, &job.body[..]), (id, &b"a body\r\nof two lines"[..]));
        assert_eq!(c.stats_job(id).await.unwrap().get("state"), Some("reserved"));
        c.touch(id).await.unwrap();
        c.release(id, 5, 100).await.unwrap();
        assert_eq!(c.peek_delayed().await.unwrap().id, id);
        c.kick_job(id).await.unwrap();
        c.reserve_job(id).await.unwrap();
        c.bury(id, 5).await.unwrap();
        assert_eq!(c.peek_buried().await.unwrap().id, id);
        assert_eq!(c.kick(10).await.unwrap(), 1);
        assert_eq!(c.stats_tube("life").await.unwrap().number("current-jobs-ready"), Some(1));
        c.delete(id).await.unwrap();
        assert!(matches!(c.peek(id).await, Err(Error::NotFound { .. })));
        assert_eq!(c.reserve_with_timeout(0).await.unwrap(), Reserve::TimedOut);
        assert_eq!(c.list_tube_used().await.unwrap(), "life");
        assert_eq!(c.list_tubes_watched().await.unwrap(), ["life"]);
        assert!(c.list_tubes().await.unwrap().contains(&"default".to_owned()));
        assert!(c.stats().await.unwrap().number("cmd-put").is_some());
        c.pause_tube("life", 0).await.unwrap();
        let big = vec![0; 70_000];
        assert!(matches!(
            c.put(&big, PutOptions::default()).await,
            Err(Error::Refused { refusal: Refusal::JobTooBig, .. })
        ));
        c.quit().await.unwrap();
    });
}
