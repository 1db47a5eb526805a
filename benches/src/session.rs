//! One run from its first connection to its report: load, then account.

use crate::args::{CommonArgs, Mode, Plan, Role};
use crate::disk::{self, DiskWrites, Question};
use crate::environment::{CpuTime, Environment, allow_connections, measure_fdatasync};
use crate::load::{Driver, LoadError, Run, nanos};
use crate::meter::Meter;
use crate::report::{ClientCost, Report, ServerFacts, Settings, Verification};
use beanpole_client::{Address, ConnectError, Connection, Error as ClientError, Stats};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The arguments make no sense together.
    #[error("{0}")]
    Usage(String),
    /// `--fsync-dir` could not be measured.
    #[error("cannot measure fdatasync in {directory}: {source}")]
    Fsync {
        /// The directory given.
        directory: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server cannot be reached or does not answer.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The server cannot be reached for its counters.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server does not tell its counters.
    #[error(transparent)]
    Stats(#[from] ClientError),
    /// There is no event loop for the counters' connection.
    #[error("cannot start an event loop: {0}")]
    Runtime(std::io::Error),
}

/// Connections that take many jobs out again at the end: a durable server may do one reserve at a time on
/// each.
const DRAIN_CONNECTIONS_MAX: usize = 256;
/// Jobs for which one more draining connection pays.
const DRAIN_JOBS_PER_CONNECTION: u64 = 100;
/// How long to wait before looking again for jobs that have not come.
const DRAIN_PAUSE: Duration = Duration::from_millis(100);
/// How long the server may take to answer the first commands, or one question for its counters.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Carries out one run.
pub fn measure(mode: &Mode) -> Result<Report, RunError> {
    let common = mode.common();
    let plan = Plan::new(mode);
    check_names(&plan)?;
    allow_connections(plan.roles.len().max(DRAIN_CONNECTIONS_MAX));
    let mut environment = Environment::here();
    if let Some(directory) = &common.fsync_dir {
        let measured = measure_fdatasync(directory);
        environment.fdatasync = Some(
            measured
                .map_err(|source| RunError::Fsync { directory: directory.display().to_string(), source })?,
        );
    }
    let addresses: Vec<Address> = common.addr.iter().map(|addr| Address::from(addr.as_str())).collect();
    let address = addresses.first().ok_or_else(|| RunError::Usage("--addr names no server".to_owned()))?;
    let keep = matches!(mode, Mode::Put(put) if put.keep);
    let stats_before = server_stats(address)?;
    let ready_before = if keep { ready_jobs(address, &plan)? } else { 0 };
    let started_unix_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();

    let mut run = Run::new(&plan);
    let cost = load(&plan, &addresses, common, &mut run)?;
    let verification = if keep {
        verify_by_counts(&plan, address, common.grace, ready_before, &mut run)
    } else {
        verify_by_drain(&plan, &addresses, common.grace, &mut run)
    };
    let server = server_stats(address).ok().map(|after| server_facts(&stats_before, &after));
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        mode: mode.name(),
        load: describe_load(mode),
        run: format!("{:016x}", plan.run),
        address: common.addr.join(","),
        started_unix_s,
        settings: settings(mode, &plan),
        seconds: cost.seconds,
        operations: operations(mode, &run.meter, cost.seconds),
        errors: run.meter.errors.clone(),
        client: client_cost(cost.cpu, run.meter.round_trips),
        server,
        disk: cost.disk,
        verification,
        environment,
    })
}

fn check_names(plan: &Plan) -> Result<(), RunError> {
    for name in &plan.tubes {
        if beanpole_protocol::Tube::new(name.as_bytes()).is_none() {
            return Err(RunError::Usage(format!(
                "'{name}' is no tube name (1 to 200 of A-Za-z0-9-+/;.$_(), not beginning with '-')"
            )));
        }
    }
    Ok(())
}

struct Cost {
    cpu: CpuTime,
    seconds: f64,
    disk: Option<DiskWrites>,
}

/// Applies the load: warm-up, window, and the answers still to come.
fn load(plan: &Plan, addresses: &[Address], common: &CommonArgs, run: &mut Run) -> Result<Cost, LoadError> {
    let mut driver = Driver::open(plan, &plan.roles, addresses, ANSWER_LIMIT, run)?;
    let counted = plan.count.is_some();
    let from = driver.run().now() + if counted { 0 } else { nanos(common.warmup) };
    let to = if counted { u64::MAX } else { from + nanos(common.duration) };
    driver.run().meter.set_window(from, to);
    let mut cpu_before = CpuTime::now();
    driver.start();
    if !counted {
        driver.until(from, Driver::is_hopeless)?;
        cpu_before = CpuTime::now();
    }
    let disk = Question::ask(disk::addresses(&common.admin, &common.addr));
    driver.until(to, |driver| driver.is_count_reached() || driver.is_hopeless())?;
    let cpu = CpuTime::now().since(cpu_before);
    let disk = disk.answer();
    let end = driver.run().meter.last_reply_ns.clamp(from, to);
    driver.stop();
    let grace_end = driver.run().now() + nanos(common.grace);
    driver.until(grace_end, |driver| driver.is_settled() || driver.is_hopeless())?;
    driver.close();
    // What the verification does is no part of the load.
    run.meter.set_window(0, 0);
    let window_end = if counted { end } else { to.min(run.now()) };
    Ok(Cost { cpu, disk, seconds: window_end.saturating_sub(from) as f64 / 1e9 })
}

/// Takes out every job of the run's tubes and checks it, looking again for missing ones until `grace` is
/// over.
fn verify_by_drain(plan: &Plan, addresses: &[Address], grace: Duration, run: &mut Run) -> Verification {
    let began = Instant::now();
    let mut findings = Vec::new();
    let mut last_progress = Instant::now();
    loop {
        let before = run.ledger.outstanding();
        if let Err(error) = drain_once(plan, addresses, grace, run) {
            findings.push(format!("the drain could not be made: {error}"));
        }
        if run.ledger.outstanding() < before {
            last_progress = Instant::now();
        }
        // Jobs whose worker's connection was just closed may take a moment to be ready again.
        if run.ledger.outstanding() == 0 || last_progress.elapsed() >= grace || !findings.is_empty() {
            break;
        }
        std::thread::sleep(DRAIN_PAUSE);
    }
    let lost = run.ledger.close();
    let counts = run.ledger.counts();
    findings.extend_from_slice(run.ledger.examples());
    findings.extend(nothing_put(plan, run));
    let missing = short_of_count(plan, run, &mut findings);
    Verification {
        ok: findings.is_empty() && !missing,
        method: "every job was taken out and checked".to_owned(),
        lost,
        counts,
        drain_s: began.elapsed().as_secs_f64(),
        findings,
    }
}

fn drain_once(plan: &Plan, addresses: &[Address], grace: Duration, run: &mut Run) -> Result<(), LoadError> {
    let wanted = usize::try_from(run.ledger.outstanding() / DRAIN_JOBS_PER_CONNECTION).unwrap_or(usize::MAX);
    let roles = vec![Role::Drain; wanted.clamp(1, DRAIN_CONNECTIONS_MAX)];
    let mut driver = Driver::open(plan, &roles, addresses, ANSWER_LIMIT, run)?;
    driver.start();
    // As long as jobs come, it goes on; it ends when all are told that nothing is left, or nothing comes any
    // more.
    loop {
        let received = driver.run().ledger.counts().received;
        let end = driver.run().now() + nanos(grace);
        driver.until(end, |driver| driver.is_idle())?;
        if driver.is_idle() || driver.run().ledger.counts().received == received {
            break;
        }
    }
    driver.close();
    Ok(())
}

/// Compares the ready jobs of the run's tubes with the acknowledged puts, and leaves them in place.
fn verify_by_counts(
    plan: &Plan,
    address: &Address,
    grace: Duration,
    ready_before: u64,
    run: &mut Run,
) -> Verification {
    let counts = run.ledger.counts();
    let mut findings = Vec::new();
    let mut lost = 0;
    let deadline = Instant::now() + grace;
    loop {
        let ready = ready_jobs(address, plan).map(|ready| ready.saturating_sub(ready_before));
        match ready {
            Ok(ready)
                if (counts.acknowledged..=counts.acknowledged + counts.put_unknown).contains(&ready) =>
            {
                break;
            }
            // A put whose connection was lost may still be on its way in.
            Ok(_) if Instant::now() < deadline && counts.put_unknown > 0 => std::thread::sleep(DRAIN_PAUSE),
            Ok(ready) => {
                lost = counts.acknowledged.saturating_sub(ready);
                let acknowledged = counts.acknowledged;
                findings.push(format!(
                    "{acknowledged} puts were acknowledged, the tubes hold {ready} more than before"
                ));
                break;
            }
            Err(error) => {
                findings.push(format!("the tubes' counts could not be read: {error}"));
                break;
            }
        }
    }
    let missing = short_of_count(plan, run, &mut findings);
    findings.extend_from_slice(run.ledger.examples());
    findings.extend(nothing_put(plan, run));
    let method =
        "the tubes' counts of ready jobs agree with the acknowledged puts; jobs left in place".to_owned();
    Verification { ok: findings.is_empty() && !missing, method, lost, counts, drain_s: 0.0, findings }
}

/// A run in which no put was acknowledged has shown nothing; and what most of the puts were told.
fn nothing_put(plan: &Plan, run: &Run) -> Option<String> {
    if run.ledger.counts().acknowledged > 0 || plan.count == Some(0) {
        return None;
    }
    let puts = run.meter.errors.iter().filter(|(name, _)| name.starts_with("put: "));
    let why = puts.max_by_key(|(_, count)| **count).map(|(name, count)| format!(", {count} times {name}"));
    Some(format!("no put was acknowledged{}", why.unwrap_or_default()))
}

/// Whether fewer jobs were acknowledged than were to be put.
fn short_of_count(plan: &Plan, run: &Run, findings: &mut Vec<String>) -> bool {
    let acknowledged = run.ledger.counts().acknowledged;
    let short = plan.count.is_some_and(|count| acknowledged < count);
    if short {
        findings.push(format!("only {acknowledged} of {} jobs were put", plan.count.unwrap_or_default()));
    }
    short
}

/// Asks the server over a connection of its own.
fn ask<T>(
    address: &Address,
    question: impl AsyncFnOnce(&mut Connection) -> Result<T, ClientError>,
) -> Result<T, RunError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    runtime.block_on(async {
        let mut connection = Connection::connect(address.clone()).await?;
        Ok(question(&mut connection).await?)
    })
}

fn server_stats(address: &Address) -> Result<Stats, RunError> {
    ask(address, async |connection| connection.stats().await)
}

/// Ready jobs in all tubes of the plan.
fn ready_jobs(address: &Address, plan: &Plan) -> Result<u64, RunError> {
    ask(address, async |connection| {
        let mut ready = 0;
        for tube in &plan.tubes {
            match connection.stats_tube(tube).await {
                Ok(stats) => ready += stats.number("current-jobs-ready").unwrap_or_default(),
                Err(ClientError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ready)
    })
}

fn server_facts(before: &Stats, after: &Stats) -> ServerFacts {
    let cpu = |stats: &Stats| -> f64 {
        ["rusage-utime", "rusage-stime"].iter().filter_map(|key| stats.get(key)?.parse::<f64>().ok()).sum()
    };
    ServerFacts {
        version: after.get("version").unwrap_or("unknown").to_owned(),
        pid: after.number("pid").unwrap_or_default(),
        cpu_s: (cpu(after) - cpu(before)).max(0.0),
    }
}

fn client_cost(cpu: CpuTime, round_trips: u64) -> ClientCost {
    let (user, system) = (cpu.user.as_secs_f64(), cpu.system.as_secs_f64());
    ClientCost {
        cpu_user_s: user,
        cpu_system_s: system,
        round_trips,
        cpu_us_per_round_trip: (user + system) * 1e6 / round_trips.max(1) as f64,
    }
}

/// The summaries that mean something in this mode.
fn operations(mode: &Mode, meter: &Meter, seconds: f64) -> BTreeMap<&'static str, crate::meter::Summary> {
    let mut operations = BTreeMap::from([("put", meter.put.summary(seconds))]);
    match mode {
        Mode::Put(_) => {}
        Mode::Cycle(_) => {
            operations.insert("reserve", meter.reserve.summary(seconds));
            operations.insert("delete", meter.delete.summary(seconds));
            operations.insert("cycle", meter.cycle.summary(seconds));
        }
        Mode::Work(_) => {
            operations.insert("reserve", meter.reserve.summary(seconds));
            operations.insert("delete", meter.delete.summary(seconds));
            operations.insert("end_to_end", meter.end_to_end.summary(seconds));
        }
    }
    operations
}

fn describe_load(mode: &Mode) -> String {
    let rest = "so a slow server slows the load and the latencies are those under the load it accepts";
    match mode {
        Mode::Put(put) => {
            format!("closed loop: a connection has at most {} put(s) unanswered, {rest}", put.pipeline)
        }
        Mode::Cycle(_) => {
            format!("closed loop: each connection puts, reserves, deletes, one command at a time, {rest}")
        }
        Mode::Work(work) => {
            let bound = match work.backlog() {
                0 => "with no bound on the backlog".to_owned(),
                n => format!("pausing while {n} jobs are on the way"),
            };
            format!(
                "closed loop: {} producers with at most {} put(s) unanswered, {bound}; {} workers reserve and \
                 delete; {rest}",
                work.producers, work.pipeline, work.workers
            )
        }
    }
}

fn settings(mode: &Mode, plan: &Plan) -> Settings {
    let common = mode.common();
    let count = |wanted: fn(&Role) -> bool| plan.roles.iter().filter(|role| wanted(role)).count();
    Settings {
        connections: plan.roles.len(),
        producers: count(|role| matches!(role, Role::Produce { .. } | Role::Cycle)),
        workers: count(|role| matches!(role, Role::Work | Role::Cycle)),
        pipeline: match mode {
            Mode::Put(put) => put.pipeline,
            Mode::Cycle(_) => 1,
            Mode::Work(work) => work.pipeline,
        },
        body_size: plan.body_size.to_string(),
        tubes: plan.tubes.len(),
        tube: plan.tubes[0].clone(),
        duration_s: common.duration.as_secs_f64(),
        warmup_s: common.warmup.as_secs_f64(),
        count: plan.count,
        ttr_s: plan.ttr,
        backlog: plan.backlog,
        keep: matches!(mode, Mode::Put(put) if put.keep),
    }
}
