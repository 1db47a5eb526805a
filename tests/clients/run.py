"""Runs each real client's session against a server of its own. Exit code 0 when all that could run did well.

A client that cannot be installed is reported as SKIPPED with the reason, and makes the exit code 3: a run
that tested nothing is not green.
"""

import argparse
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / "target" / "clients"
START_SECONDS = 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def owns(pid, port):
    """True when the process itself holds the listening socket."""
    inodes = set()
    for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].split(":")[1], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    links = pathlib.Path(f"/proc/{pid}/fd").iterdir()
    return any(os.readlink(link) in inodes for link in links if link.is_symlink())


class Server:
    """A server on a fresh directory, killed at the end of the block."""

    def __init__(self, command_of):
        self.dir = tempfile.mkdtemp(prefix="beanpole-clients-")
        self.port = free_port()
        command = command_of(self.dir, self.port, free_port())
        self.log = open(os.path.join(self.dir, "stderr"), "w+")
        self.process = subprocess.Popen(command, stderr=self.log, stdout=subprocess.DEVNULL)

    def __enter__(self):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                if owns(self.process.pid, self.port):
                    return self
            except FileNotFoundError:
                pass
            time.sleep(0.005)
        self.log.seek(0)
        raise SystemExit(f"the server did not start: {self.log.read()}")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def beanpole(binary):
    return lambda dir, port, admin_port: [
        binary, "serve", "--data-dir", dir + "/data", "--listen", f"127.0.0.1:{port}",
        "--admin-listen", f"127.0.0.1:{admin_port}",
    ]


def beanstalkd(binary):
    return lambda dir, port, admin_port: [binary, "-l", "127.0.0.1", "-p", str(port)]


def python_client(package, session):
    """Installs a package into the cached venv; gives the command of its session."""
    venv = CACHE / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", package]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode != 0:
        raise LookupError(f"pip cannot install {package}: {done.stderr.strip().splitlines()[-1:]}")
    return [str(python), str(HERE / session)]


def rust_client():
    """Builds the session of the Rust client; gives its command."""
    target = CACHE / "rust"
    manifest = HERE / "rust-client" / "Cargo.toml"
    build = ["cargo", "build", "--quiet", "--manifest-path", str(manifest), "--target-dir", str(target)]
    done = subprocess.run(build, capture_output=True, text=True)
    if done.returncode != 0:
        if "could not compile" in done.stderr:
            raise SystemExit(done.stderr)
        raise LookupError(f"cargo cannot build it: {done.stderr.strip().splitlines()[-1:]}")
    return [str(target / "debug" / "beanstalkc-session")]


CLIENTS = {
    "greenstalk": lambda: python_client("greenstalk==2.1.1", "greenstalk_session.py"),
    "pystalk": lambda: python_client("pystalk==0.9.1", "pystalk_session.py"),
    "beanstalkc (Rust)": rust_client,
}


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--binary", help="the beanpole to test; default: a release build")
    arguments.add_argument("--beanstalkd", action="store_true", help="test Debian's beanstalkd instead")
    given = arguments.parse_args()
    if given.beanstalkd:
        command_of = beanstalkd(shutil.which("beanstalkd") or sys.exit("beanstalkd is not installed"))
    else:
        if not given.binary:
            subprocess.run(["cargo", "build", "--release", "--bin", "beanpole"], cwd=ROOT, check=True)
        command_of = beanpole(given.binary or str(ROOT / "target" / "release" / "beanpole"))
    CACHE.mkdir(parents=True, exist_ok=True)
    failed = skipped = 0
    for name, prepare in CLIENTS.items():
        try:
            command = prepare()
        except LookupError as reason:
            print(f"SKIPPED {name}: {reason}", flush=True)
            skipped += 1
            continue
        with Server(command_of) as server:
            done = subprocess.run(command + ["127.0.0.1", str(server.port)], timeout=120)
        print(f"{name}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
        failed += done.returncode != 0
    return 1 if failed else 3 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
