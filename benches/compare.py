#!/usr/bin/env python3
"""Measures beanstalkd in memory, beanstalkd with a binlog synced at each write (-b DIR -f0), and beanpole, in turn.

Every round runs all servers one after the other (A B C A B C ...), so that a slow minute of the machine hits all of
them; for each measurement a server is freshly started on a free port with a fresh data directory. Printed are the medians over the rounds, their
ratios, and what else kept the machine busy meanwhile. The load generator verifies every job; a run that loses, doubles
or damages one fails the comparison.

    cargo build --release && benches/compare.py
    benches/compare.py --rounds 5 --seconds 10 --json compare.json

Needs only Python's standard library, Linux, and beanstalkd in the PATH. Ends only processes that it started itself.
Exit codes: 0 done, 1 a verification failed or a server broke, 2 usage.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

START_LIMIT_S = 15
STOP_LIMIT_S = 15
START_TRIES = 3
# Above this share of the machine's time used by others, a measurement says more about them.
NOISE_SHARE = 0.05


class Failure(Exception):
    """The comparison cannot go on, and why."""


# ---------------------------------------------------------------------------------------------------- the servers

def server_command(kind, args, port, admin_port, data_dir):
    if kind == "memory":
        return [args.beanstalkd, "-l", "127.0.0.1", "-p", str(port)]
    if kind == "binlog":
        return [args.beanstalkd, "-l", "127.0.0.1", "-p", str(port), "-b", data_dir, "-f0"]
    return [args.beanpole, "serve", "--data-dir", data_dir,
            "--listen", f"127.0.0.1:{port}", "--admin-listen", f"127.0.0.1:{admin_port}"]


NAMES = {
    "memory": "beanstalkd in memory",
    "binlog": "beanstalkd -b -f0",
    "beanpole": "beanpole",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening_inodes(port):
    """The inodes of sockets that listen on 127.0.0.1:port."""
    inodes = set()
    with open("/proc/net/tcp", encoding="ascii") as table:
        for line in table.readlines()[1:]:
            fields = line.split()
            address, state, inode = fields[1], fields[3], fields[9]
            if state == "0A" and address in (f"0100007F:{port:04X}", f"00000000:{port:04X}"):
                inodes.add(inode)
    return inodes


def owns_port(pid, port):
    """Whether process pid itself listens on the port: a stranger on it would be measured instead."""
    inodes = listening_inodes(port)
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{fd}"))
            if match and match.group(1) in inodes:
                return True
    except OSError:
        pass
    return False


class Server:
    """A server process of our own, as a context: started on entry, ended and cleaned up on exit."""

    def __init__(self, kind, args):
        self.kind, self.args = kind, args
        self.process = self.port = self.data_dir = self.log = None
        self.last_words = ""

    def __enter__(self):
        try:
            for _ in range(START_TRIES):
                if self.start():
                    return self
                if self.process.poll() is None:
                    print(f"{NAMES[self.kind]} does not listen after {START_LIMIT_S} s", file=sys.stderr)
                self.stop()
        except BaseException:
            self.stop()
            raise
        raise Failure(f"{NAMES[self.kind]} does not start")

    def start(self):
        self.data_dir = tempfile.mkdtemp(prefix=f"{self.kind}-", dir=self.args.dir)
        self.log = tempfile.TemporaryFile(dir=self.args.dir)
        self.port = free_port()
        command = server_command(self.kind, self.args, self.port, free_port(), self.data_dir)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if owns_port(self.process.pid, self.port):
                return True
            time.sleep(0.01)
        return False

    def alive(self):
        return self.process.poll() is None

    def cpu_s(self):
        """Processor seconds of the server so far."""
        with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        died = self.process and self.process.poll()
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.log:
            self.log.seek(0)
            self.last_words = self.log.read()[-2000:].decode("utf-8", "replace")
            self.log.close()
            self.log = None
            if died:
                print(f"{NAMES[self.kind]} ended by itself with {died}; its last words:\n{self.last_words}",
                      file=sys.stderr)
        if self.data_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)
            self.data_dir = None

    def __exit__(self, *_):
        self.stop()


# ------------------------------------------------------------------------------------------------ the measurements

def measurements(args):
    """Name -> arguments of the load generator, and the figures taken from its report."""
    rate = lambda op: (lambda report: report["operations"][op]["per_second"])
    p50 = lambda op: (lambda report: report["operations"][op]["latency_us"]["p50"])
    p99 = lambda op: (lambda report: report["operations"][op]["latency_us"]["p99"])
    connections = str(args.connections)
    return {
        "cycle": (["cycle", "--connections", connections],
                  {f"cycles/s, {connections} connections": rate("cycle"), "  cycle p99, us": p99("cycle")}),
        "put": (["put", "--connections", "1"],
                {"puts/s, 1 connection": rate("put"), "  put p50, us": p50("put"), "  put p99, us": p99("put")}),
        # Hundreds of thousands of jobs: counted instead of taken out, for that would take longer than the measurement.
        "pipelined-1": (["put", "--connections", "1", "--pipeline", "100", "--keep"],
                        {"puts/s, 1 connection, 100 deep": rate("put")}),
        "pipelined-8": (["put", "--connections", "8", "--pipeline", "100", "--keep"],
                        {"puts/s, 8 connections, 100 deep": rate("put")}),
    }


def busy_s():
    """Processor seconds the whole machine has worked since its start, and how many there were."""
    with open("/proc/stat", encoding="ascii") as stat:
        jiffies = [int(field) for field in stat.readline().split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    return (sum(jiffies) - jiffies[3] - jiffies[4]) / tick, sum(jiffies) / tick


def children_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(server, mode_arguments, args):
    """One run of the load generator: its report, with what others used of the machine meanwhile."""
    if not (server.alive() and owns_port(server.process.pid, server.port)):
        raise Failure(f"{NAMES[server.kind]} is no longer there")
    command = args.bench + mode_arguments + [
        "--addr", f"127.0.0.1:{server.port}", "--body-size", str(args.body_size),
        "--duration", f"{args.seconds}s", "--warmup", f"{args.warmup}s", "--fsync-dir", args.dir, "-o", "json"]
    before = busy_s(), children_cpu_s(), server.cpu_s()
    # Far beyond the bound that the load generator keeps itself.
    limit = 10 * (args.seconds + args.warmup) + 120
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=limit, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"the load generator hangs on {NAMES[server.kind]}: {' '.join(command)}") from error
    after = busy_s(), children_cpu_s(), server.cpu_s()
    if not done.stdout:
        raise Failure(f"the load generator failed with {done.returncode}: {' '.join(command)}")
    report = json.loads(done.stdout)
    busy, total = after[0][0] - before[0][0], after[0][1] - before[0][1]
    ours = (after[1] - before[1]) + (after[2] - before[2])
    report["others_share"] = max(0.0, busy - ours) / total if total else 0.0
    report["server_cpu_s"] = after[2] - before[2]
    return report


def run_rounds(args, kinds):
    """reports[kind][measurement] = one report for each round."""
    reports = {kind: {name: [] for name in measurements(args)} for kind in kinds}
    for number in range(1, args.rounds + 1):
        for kind in kinds:
            for name, (mode_arguments, figures) in measurements(args).items():
                with Server(kind, args) as server:
                    report = measure(server, mode_arguments, args)
                reports[kind][name].append(report)
                label, figure = next(iter(figures.items()))
                ok = "" if report["verification"]["ok"] else "  VERIFICATION FAILED"
                noise = report["others_share"]
                noisy = f"  (others used {noise:.0%} of the machine)" if noise > NOISE_SHARE else ""
                print(f"round {number}  {NAMES[kind]:<22} {label:<34} {figure(report):>10.0f}{ok}{noisy}",
                      file=sys.stderr, flush=True)
    return reports


# ---------------------------------------------------------------------------------------------------- the results

def median_of(reports, figure):
    return statistics.median(figure(report) for report in reports)


def tabulate(args, kinds, reports):
    """Rows of (label, median by kind, ratio by other kind)."""
    rows = []
    for name, (_, figures) in measurements(args).items():
        for label, figure in figures.items():
            medians = {kind: median_of(reports[kind][name], figure) for kind in kinds}
            ratios = {}
            if "beanpole" in medians:
                ratios = {kind: medians["beanpole"] / medians[kind] if medians[kind] else None
                          for kind in kinds if kind != "beanpole"}
            rows.append({"figure": label.strip(), "indent": label.startswith(" "), "medians": medians,
                         "beanpole_to": ratios})
    return rows


def every_report(reports):
    return [report for by_name in reports.values() for several in by_name.values() for report in several]


def put_bound(kinds, reports, fdatasync_us):
    """One connection's put p50 against one fdatasync and a loopback round trip (a put to beanstalkd in memory)."""
    if not {"memory", "beanpole"} <= set(kinds):
        return None
    p50 = lambda kind: median_of(reports[kind]["put"], lambda r: r["operations"]["put"]["latency_us"]["p50"])
    floor = fdatasync_us + p50("memory")
    return {"beanpole_put_p50_us": p50("beanpole"), "fdatasync_p50_us": fdatasync_us,
            "loopback_put_p50_us": p50("memory"), "ratio": p50("beanpole") / floor}


def print_results(args, kinds, result):
    env = result["environment"]
    print(f"{env['cpus']} x {env['cpu']}, {env['kernel']}; "
          f"fdatasync p50 {result['fdatasync_p50_us']:.0f} us in {args.dir}")
    print(f"bodies of {args.body_size} bytes; medians of {args.rounds} rounds of {args.seconds} s; closed loop\n")
    others = [kind for kind in kinds if kind != "beanpole"] if "beanpole" in kinds else []
    head = f"{'':<34}" + "".join(f"{NAMES[kind]:>22}" for kind in kinds)
    print(head + "".join(f"{'beanpole / ' + kind:>20}" for kind in others))
    for row in result["rows"]:
        line = f"{('  ' if row['indent'] else '') + row['figure']:<34}"
        line += "".join(f"{row['medians'][kind]:>22.0f}" for kind in kinds)
        for kind in others:
            ratio = row["beanpole_to"][kind]
            line += f"{'-' if ratio is None else format(ratio, '.2f'):>20}"
        print(line)
    bound = result["put_bound"]
    if bound:
        print(f"\nput p50 of one connection: {bound['beanpole_put_p50_us']:.0f} us = {bound['ratio']:.2f} x "
              f"(one fdatasync {bound['fdatasync_p50_us']:.0f} us + a loopback put "
              f"{bound['loopback_put_p50_us']:.0f} us)")
    print(f"load generator: {result['client_cpu_us_per_round_trip']:.2f} us of processor time per round trip (cycle)")
    if result["noisy"]:
        print(f"caution: in {result['noisy']} measurements others used more than {NOISE_SHARE:.0%} of the machine")
    for failure in result["failures"]:
        print(f"FAILED: {failure}")


def summarize(args, kinds, reports):
    all_reports = every_report(reports)
    fdatasync_us = statistics.median(report["environment"]["fdatasync"]["p50_us"] for report in all_reports)
    failures = [f"{NAMES[kind]}, {name}, round {number}: {'; '.join(report['verification']['findings'])}"
                for kind in kinds for name, several in reports[kind].items()
                for number, report in enumerate(several, 1) if not report["verification"]["ok"]]
    cycles = [report for kind in kinds for report in reports[kind]["cycle"]]
    return {
        "environment": all_reports[0]["environment"],
        "settings": {"seconds": args.seconds, "rounds": args.rounds, "connections": args.connections,
                     "body_size": args.body_size, "load": "closed loop"},
        "fdatasync_p50_us": fdatasync_us,
        "rows": tabulate(args, kinds, reports),
        "put_bound": put_bound(kinds, reports, fdatasync_us),
        "client_cpu_us_per_round_trip": statistics.median(r["client"]["cpu_us_per_round_trip"] for r in cycles),
        "noisy": sum(report["others_share"] > NOISE_SHARE for report in all_reports),
        "failures": failures,
        "reports": reports,
    }


# ------------------------------------------------------------------------------------------------- the command line

def file_system_of(path):
    """The type of the file system that holds path."""
    path, best, kind = os.path.realpath(path), "", "unknown"
    with open("/proc/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, point, this_kind = line.split()[:3]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, this_kind
    return kind


def parse_arguments():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beanpole", default=os.path.join(root, "target/release/beanpole"),
                        help="the binary to measure (default: %(default)s)")
    parser.add_argument("--beanstalkd", default="beanstalkd", help="the original (default: from the PATH)")
    parser.add_argument("--bench", help="the load generator (default: BEANPOLE bench)")
    parser.add_argument("--servers", default="memory,binlog,beanpole", help="which of them (default: %(default)s)")
    parser.add_argument("--dir", default=os.path.join(root, "target/compare"),
                        help="where data directories are made and removed; a real disk (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement (default: 5)")
    parser.add_argument("--warmup", type=int, default=1, help="seconds before each measurement (default: 1)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64, help="of the cycle measurement (default: 64)")
    parser.add_argument("--body-size", type=int, default=256, help="bytes (default: 256)")
    parser.add_argument("--json", help="also write everything to this file")
    args = parser.parse_args()
    args.bench = [args.bench] if args.bench else [args.beanpole, "bench"]
    kinds = args.servers.split(",")
    for kind in kinds:
        if kind not in NAMES:
            parser.error(f"no server '{kind}'; there are {', '.join(NAMES)}")
    if not 1 <= args.seconds <= 600 or not 1 <= args.rounds <= 100:
        parser.error("--seconds goes from 1 to 600, --rounds from 1 to 100")
    needed = [args.bench[0]] + ([args.beanpole] if "beanpole" in kinds else [])
    needed += [args.beanstalkd] if {"memory", "binlog"} & set(kinds) else []
    for program in needed:
        if not shutil.which(program):
            parser.error(f"there is no program {program} (build with `cargo build --release`, install beanstalkd, or "
                         "choose with --servers)")
    os.makedirs(args.dir, exist_ok=True)
    args.dir = os.path.realpath(args.dir)
    if file_system_of(args.dir) in ("tmpfs", "ramfs"):
        parser.error(f"{args.dir} is memory, not a disk: choose another with --dir")
    return args, kinds


def main():
    args, kinds = parse_arguments()
    # An interrupted comparison ends its servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        result = summarize(args, kinds, run_rounds(args, kinds))
    except Failure as failure:
        print(f"compare: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("compare: interrupted", file=sys.stderr)
        return 1
    print_results(args, kinds, result)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)
            file.write("\n")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
