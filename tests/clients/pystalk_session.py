"""A working day of a pystalk client. It reads stats with a real YAML parser."""

import sys

from pystalk import BeanstalkClient, BeanstalkError

client = BeanstalkClient(sys.argv[1], int(sys.argv[2]), auto_decode=True)


def expect(word, call, *arguments):
    try:
        result = call(*arguments)
    except BeanstalkError as error:
        assert word in str(error), (word, error)
        return
    raise AssertionError(f"expected {word}, got {result!r}")


assert client.list_tubes() == ["default"]
_, id = client.put_job("hello", pri=5, ttr=60)
job = client.reserve_job(timeout=2)
assert (job.job_id, job.job_data) == (id, "hello"), job
stats = client.stats_job(id)
assert (stats["state"], stats["pri"], stats["reserves"]) == ("reserved", 5, 1), stats
client.release_job(id, pri=9, delay=100)
assert client.stats_job(id)["delay"] == 100
assert client.peek_delayed().job_id == id
client.kick_jobs(10)
assert client.peek_ready().job_id == id
job = client.reserve_job(timeout=2)
client.bury_job(id, pri=4)
assert client.peek_buried().job_id == id
client.kick_job(id)
client.delete_job(id)
expect("NOT_FOUND", client.delete_job, id)
expect("TIMED_OUT", client.reserve_job, 0)
print("  pystalk jobs: ok", flush=True)

client.watch("1e3")
with client.using("1e3") as inserter:
    inserter.put_job("numbered tube")
# A tube whose name looks like a number is a string for a YAML parser when it is quoted (1.13), in
# dictionaries; beanstalkd 1.12 does not quote.
stats = client.stats_tube("1e3")
assert str(stats["name"]) in ("1e3", "1000.0"), stats
assert stats["current-jobs-ready"] == 1, stats
client.pause_tube("1e3", 100)
expect("TIMED_OUT", client.reserve_job, 0)
assert 90 <= client.stats_tube("1e3")["pause-time-left"] <= 100
client.unpause_tube("1e3")
job = client.reserve_job(timeout=2)
assert job.job_data == "numbered tube"
client.delete_job(job.job_id)
expect("NOT_IGNORED", client.ignore, "1e3")
print("  pystalk tubes: ok", flush=True)

stats = client.stats()
assert isinstance(stats["id"], str), "the id must not look like a number to YAML"
assert isinstance(stats["version"], str) and isinstance(stats["hostname"], str), stats
assert stats["draining"] is False, stats
assert stats["current-jobs-ready"] == 0 and stats["total-jobs"] == 2, stats
print("  pystalk stats: ok", flush=True)
