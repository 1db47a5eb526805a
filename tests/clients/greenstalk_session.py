"""A working day of a greenstalk client: every command it has, with the replies it relies on."""

import sys
import threading

import greenstalk
from greenstalk import Client

address = (sys.argv[1], int(sys.argv[2]))


def expect(error, call, *arguments, **named):
    try:
        result = call(*arguments, **named)
    except error:
        return
    raise AssertionError(f"expected {error.__name__}, got {result!r}")


def put_reserve_delete(client):
    id = client.put("hello", priority=10, delay=0, ttr=30)
    job = client.reserve(timeout=5)
    assert (job.id, job.body) == (id, "hello"), job
    client.touch(job)
    client.delete(job)
    expect(greenstalk.NotFoundError, client.delete, job)
    expect(greenstalk.TimedOutError, client.reserve, timeout=0)


def release_and_bury(client):
    id = client.put("again")
    job = client.reserve()
    client.release(job, priority=3, delay=0)
    stats = client.stats_job(id)
    assert (stats["state"], stats["pri"], stats["releases"], stats["reserves"]) == ("ready", 3, 1, 1), stats
    assert stats["tube"] == "default" and stats["id"] == id and stats["file"] == 0, stats
    job = client.reserve()
    client.bury(job, priority=7)
    assert client.peek_buried().id == id
    expect(greenstalk.TimedOutError, client.reserve, timeout=0)
    assert client.kick(10) == 1
    job = client.reserve_job(id)
    client.bury(job)
    client.kick_job(id)
    assert client.peek_ready().body == "again"
    client.delete(id)
    expect(greenstalk.NotFoundError, client.peek, id)


def delays(client):
    id = client.put("later", delay=1)
    assert client.peek_delayed().id == id
    assert client.stats_job(id)["state"] == "delayed"
    assert client.reserve(timeout=5).id == id
    client.delete(id)


def tubes(client):
    with Client(address, use="orders", watch=["orders", "mails"]) as other:
        assert other.using() == "orders"
        assert sorted(other.watching()) == ["mails", "orders"]
        other.put("order 1")
        assert sorted(client.tubes()) == ["default", "mails", "orders"]
        assert other.watch("more") == 3
        assert other.ignore("more") == 2
        other.ignore("mails")
        expect(greenstalk.NotIgnoredError, other.ignore, "orders")
        stats = client.stats_tube("orders")
        assert stats["current-jobs-ready"] == 1 and stats["current-using"] == 1, stats
        assert stats["name"] == "orders", stats
        client.pause_tube("orders", 100)
        expect(greenstalk.TimedOutError, other.reserve, timeout=0)
        assert client.stats_tube("orders")["pause"] == 100
        client.pause_tube("orders", 0)
        other.delete(other.reserve(timeout=5))
    expect(greenstalk.NotFoundError, client.stats_tube, "nowhere")


def a_worker_that_waits(client):
    got = []

    def work():
        with Client(address) as worker:
            job = worker.reserve()
            got.append(job.body)
            worker.delete(job)

    thread = threading.Thread(target=work)
    thread.start()
    while client.stats()["current-waiting"] != 1:
        pass
    client.put("for the worker")
    thread.join(10)
    assert got == ["for the worker"], got


def edges(client):
    with Client(address, encoding=None) as binary:
        body = bytes(range(256)) * 16 + b"\r\n"
        id = binary.put(body)
        assert binary.reserve().body == body
        binary.delete(id)
        largest = client.stats()["max-job-size"]
        binary.delete(binary.put(b"x" * largest))
        expect(greenstalk.JobTooBigError, binary.put, b"x" * (largest + 1))
        assert binary.using() == "default", "the connection goes on"
    client.put("", ttr=1)
    job = client.reserve()
    assert job.body == ""
    expect(greenstalk.DeadlineSoonError, client.reserve, timeout=5)
    client.delete(job)
    expect(greenstalk.BadFormatError, client.use, "-bad")


def stats(client):
    stats = client.stats()
    for key in ("current-jobs-urgent", "cmd-put", "total-jobs", "uptime", "pid", "binlog-max-size"):
        assert isinstance(stats[key], int), (key, stats[key])
    for key in ("version", "id", "hostname", "os", "platform"):
        assert isinstance(stats[key], str) and stats[key], (key, stats[key])
    assert stats["draining"] in ("false", False), stats["draining"]
    jobs = ("urgent", "ready", "reserved", "delayed", "buried")
    assert all(stats[f"current-jobs-{state}"] == 0 for state in jobs), stats


with Client(address) as client:
    for story in (put_reserve_delete, release_and_bury, delays, tubes, a_worker_that_waits, edges, stats):
        story(client)
        print(f"  greenstalk {story.__name__}: ok", flush=True)
