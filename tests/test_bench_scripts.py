"""The benchmarks beside fan-out run in a tiny size, and their checks fail when they should."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from servers import Daemon, open_daemon
from test_bench import Relay, honest, swap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need Linux")

BENCH = Path(__file__).parent.parent / "bench"
TINY = {
    "latency.py": "--connections 20 --rates 1000,4000 --seconds 0.3 --warmup 0.1 --repeat 1",
    "connections.py": "--connections 40 --repeat 1 --hold 50",
    "inbound.py": "--publishers 5 --sizes 3000 --bursts 4 --seconds 0.1 --warmup 0.1 --repeat 1",
    "slow_consumer.py": "--connections 7 --stalled 2 --publishers 2 --rate 500 --size 60000 --seconds 1.5 --warmup 0.1"
    " --repeat 1",
    "recovery.py": "--connections 60 --missed 20 --join-leave 20 --repeat 1",
    "order.py": "--rooms 3 --subscribers 4 --publishers 5 --seconds 0.5 --repeat 1",
    "rooms.py": "--connections 20 --rooms 1,20 --history 0,10 --fill 400 --seconds 0.1 --warmup 0.1 --repeat 1",
    "soak.py": "--connections 20 --rooms 2 --churn 20 --stay 0.5 --seconds 5.5 --growth-max 50",
}
ALONE = ("slow_consumer.py", "order.py")
"""These find fault with whoever is slow, for which a busy machine may be to blame."""
# Of settings as strict as these, the check of the script has to say something.
STALLED_SOON = {"HUBBUB_WRITE_STALL_SECONDS_MAX": "0.4", "HUBBUB_OUTBOX_BYTES_MAX": "100000"}


def bench(script: str, *arguments: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / script), "--no-pin", "--deadline", "30", *arguments]
    environment = os.environ | (settings or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=80, env=environment)


def tiny(script: str, *arguments: str, settings: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return bench(script, *TINY[script].split(), *arguments, settings=settings)


@pytest.mark.parametrize(
    "script", [pytest.param(script, marks=[pytest.mark.alone] if script in ALONE else []) for script in TINY]
)
def test_measures_the_daemon(script: str, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    done = tiny(script, "--json", str(file), settings=STALLED_SOON if script == "slow_consumer.py" else None)

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3
    outcome: dict[str, Any] = json.loads(file.read_text())
    assert outcome["ok"] is True
    assert {"options", "machine", "settings"} < outcome.keys()
    assert outcome["machine"]["cpu"]
    in_git = (BENCH.parent / ".git").exists()
    assert re.fullmatch(r"[0-9a-f]{10,}\+?", outcome["commit"]) if in_git else "commit" not in outcome


@pytest.mark.parametrize(
    ("script", "settings", "reason"),
    [
        ("connections.py", {"HUBBUB_CONNECTIONS_MAX": "30"}, "the handshake was answered by [b'HTTP/1.1 503"),
        ("inbound.py", {"HUBBUB_MESSAGE_BYTES_MAX": "1000"}, "was closed by the server (close code 1009)"),
        ("recovery.py", {"HUBBUB_HISTORY_SIZE": "19"}, "hasn't recovered"),
        ("rooms.py", {"HUBBUB_HISTORY_BYTES_MAX": "1024"}, "publications are kept where 10 are due"),
        ("order.py", {"HUBBUB_ALLOW_PUBLISH": "nobody"}, "permission denied"),
        ("soak.py", {"HUBBUB_ALLOW_SUBSCRIBE": "users"}, "the handshake was answered by [b'HTTP/1.1 403"),
    ],
)
def test_a_result_that_fails_its_check_is_no_result(
    script: str, settings: dict[str, str], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "result.json"

    done = tiny(script, "--json", str(file), settings=settings)

    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert json.loads(file.read_text())["ok"] is False


def test_a_second_without_a_delivery_is_a_sample(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    sparse = "--seconds 5.5 --connections 4 --rooms 1 --churn 0 --rate 0.5 --growth-max 50"

    done = bench("soak.py", *sparse.split(), "--json", str(file))

    assert done.returncode == 0, done.stderr
    samples = json.loads(file.read_text())["samples"]
    assert len(samples) == 5
    assert {sample["deliveries"] > 0 for sample in samples} == {True, False}
    assert all(("p99_ms" in sample) == (sample["deliveries"] > 0) for sample in samples)


def test_recovers_more_than_a_room_keeps_by_default() -> None:
    done = bench("recovery.py", *["--connections", "5", "--missed", "4000", "--join-leave", "0", "--repeat", "1"])

    assert done.returncode == 0, done.stderr
    assert "20,000" in done.stdout


def stop_at_work(number: int, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Send a signal to a script that has started a server; neither may be there afterwards."""
    command = [sys.executable, str(BENCH / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            own, until = Path(f"/proc/{process.pid}/task/{process.pid}/children"), time.monotonic() + 20
            while not any("serve" in commandline(child) for child in own.read_text().split()):
                assert time.monotonic() < until
                time.sleep(0.05)
            time.sleep(0.5)
            children = own.read_text().split()
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert [child for child in children if "serve" in commandline(child)] == []
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def commandline(pid: str) -> str:
    """Of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_is_stopped_says_so_and_stops_the_daemon(number: signal.Signals, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    done = stop_at_work(number, "latency.py", "--no-pin", "--seconds", "30", "--json", str(file))

    assert done.returncode == 128 + number, done.stderr
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "notice: nothing is pinned",
        f"latency.py: no result: stopped by {number.name}",
    ]
    outcome: dict[str, Any] = json.loads(file.read_text())
    assert {"ok": False, "error": f"stopped by {number.name}"}.items() <= outcome.items()


def test_latency_of_a_server_that_already_runs() -> None:
    with Relay(honest) as relay:
        done = tiny("latency.py", "--url", relay.url)
    assert done.returncode == 0, done.stderr

    with Relay(swap) as relay:
        done = tiny("latency.py", "--url", relay.url)
    assert done.returncode == 1
    assert "connection 3 saw another order" in done.stderr


RUNNING = [script for script in TINY if script != "latency.py"]  # those that take any hubbub, not a room


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that runs already, with all that the scripts need, and never paused."""
    config = tmp_path_factory.mktemp("config") / "hubbub.toml"
    config.write_text("[namespaces.told]\njoin_leave = true\nforce_join_leave = true\n")
    settings = {name.removeprefix("HUBBUB_").lower(): value for name, value in STALLED_SOON.items()}
    with open_daemon("--config", str(config), ping_seconds=3600, allow_publish="anonymous", **settings) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def strict() -> Iterator[Daemon]:
    """A daemon that runs already, and isn't set to what the scripts need."""
    with open_daemon(connections_max=30, publications_burst_max=1, publications_per_second_max=100) as daemon:
        yield daemon


def url(daemon: Daemon) -> str:
    return daemon.url.replace("http:", "ws:")


@pytest.mark.alone
@pytest.mark.parametrize("script", RUNNING)
def test_measures_a_server_that_already_runs(script: str, ready: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    given = ["--url", url(ready), "--pid", str(ready.process.pid), "--json", str(file)]
    shorter = {"soak.py": ["--seconds", "5.2"], "slow_consumer.py": ["--seconds", "1"]}.get(script, [])

    done = tiny(script, *given, *shorter)

    assert done.returncode == 0, done.stderr
    assert "notice: the server at --url must have: connections_max" in done.stderr
    assert json.loads(file.read_text())["options"]["target"].startswith("Target(host='127.0.0.1'")
    assert {
        "recovery.py": "with joins and leaves told" in done.stdout,
        "rooms.py": "--history is left out" in done.stderr,
        "soak.py": "isn't known" not in done.stderr,
    }.get(script, True)


@pytest.mark.alone
def test_without_pid_what_is_of_the_process_isn_t_told(ready: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "result.json"

    done = tiny("recovery.py", "--url", url(ready), "--join-leave", "0", "--json", str(file))

    assert done.returncode == 0, done.stderr
    median = json.loads(file.read_text())["median"]["recovery"]
    assert [median[name] for name in ("cpu_us_per_client", "turned_away")] == [None, None]
    assert done.stdout.splitlines()[1].split().count("-") == 2


@pytest.mark.alone
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("connections.py", "the handshake was answered by [b'HTTP/1.1 503"),
        ("inbound.py", "the server at --url made publishers pause"),
        ("order.py", "permission denied"),
    ],
)
def test_a_server_that_is_not_set_as_needed_gives_no_result(script: str, reason: str, strict: Daemon) -> None:
    done = tiny(script, "--url", url(strict))

    assert done.returncode == 1
    assert "notice: the server at --url must have: " in done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.alone
def test_recovery_leaves_out_what_needs_a_namespace(strict: Daemon) -> None:
    done = tiny("recovery.py", "--url", url(strict), "--connections", "5", "--missed", "200")

    assert done.returncode == 1  # nor is it set to the rest
    assert "the row 'with joins and leaves told' is left out" in done.stderr


@pytest.mark.alone
def test_a_stalled_reader_that_is_not_evicted_is_told() -> None:
    code = "import slow_consumer; slow_consumer.EVICTION_SECONDS = 0; slow_consumer.main()"
    arguments = [*TINY["slow_consumer.py"].split(), "--no-pin", "--rate", "50", "--seconds", "0.2"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=BENCH, capture_output=True, text=True, timeout=60
    )
    assert "2 stalled readers should have been ended and nobody else, but ended were {}" in done.stderr


def run_in_bench(code: str) -> str:
    """The last line that the code prints to standard error, where the benchmarks' modules can be imported."""
    done = subprocess.run([sys.executable, "-c", code], cwd=BENCH, capture_output=True, text=True, timeout=60)
    return (done.stderr.strip().splitlines() or [""])[-1]


def test_threads_that_wait_for_each_other_are_not_disturbed() -> None:
    """Two on one core, always busy: whatever neither of them got of the time, others had, and no more than that."""
    said = run_in_bench("""
import hashlib, os, threading
from loadgen import ThreadTime, CpuTime, clock, cpu_time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
until = clock() + 10**9
def work():
    while clock() < until - 5 * 10**8:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)  # lets go of the GIL
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
began, before = clock(), cpu_time(os.getpid())
while clock() < until - 7 * 10**8:
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10_000)
after, passed = cpu_time(os.getpid()), clock() - began
for thread in threads:
    thread.join()
waited = sum(thread.waited - before.threads[number].waited for number, thread in after.threads.items())
others = passed - (after.used - before.used)
found = after.disturbed_since(before)
if not (waited > 1.5 * passed and abs(found - others) < 0.1 * passed):
    raise SystemExit(f"in {passed}: threads waited {waited}, others had {others}, found {found}")
main, helper = ThreadTime(100, 50), ThreadTime(30, 100)
if (found := CpuTime({1: main, 2: helper}).disturbed_since(CpuTime({1: ThreadTime(0, 0)}))) != 20:
    raise SystemExit(f"all but 30 of the main thread's 50 are others', not {found}")
if CpuTime().disturbed_since(CpuTime()):
    raise SystemExit("of an unknown process nothing is known")
""")
    assert said == ""


@pytest.mark.parametrize(
    ("end", "how"), [("time.sleep(0.1); sys.exit(3)", "by itself with 3"), ("time.sleep(60)", "with -15")]
)
def test_a_daemon_that_does_not_end_well_gives_no_result(end: str, how: str) -> None:
    said = run_in_bench(f"""
import sys, time, loadgen
class Dying(loadgen.Daemon):
    command = (sys.executable, "-c", "import sys, time; print('listening on http://127.0.0.1:9', flush=True); {end}")
with Dying("/", loadgen.clock() + 10**10, {{}}, None):
    time.sleep(0.5)
""")
    expected = f"dialects.BenchError: the daemon ended {how}, and said: listening on http://127.0.0.1:9"
    assert said == expected


@pytest.mark.parametrize(
    ("target", "ended", "said"),
    [
        ("None", {"peer_reset": 7}, ""),
        ("None", {"peer_reset": 7, "write_stall": 1}, "BenchError: the server ended well-behaved connections: {'wr"),
        ("1", {"write_stall": 1}, "notice: the server at --url ended connections meanwhile, none of them of these "),
    ],
)
def test_the_server_may_not_end_those_who_behave(target: str, ended: dict[str, int], said: str) -> None:
    told = run_in_bench(f"""
import argparse, report
report.Bench("it", argparse.Namespace(target={target})).must_be_of_others({ended})
""")
    assert told.removeprefix("dialects.").startswith(said)
    assert bool(told) == bool(said)


LASTING = ["fanout.py", "chat.py", *(script for script in TINY if script not in ("connections.py", "recovery.py"))]


@pytest.mark.parametrize("script", LASTING)  # those that have --seconds
def test_the_default_deadline_leaves_the_time_asked_for(script: str) -> None:
    name = script.removesuffix(".py")
    told = run_in_bench(f"""
import {name}
{name}.run = lambda name, options, measure: print(options.deadline > 700, file={name}.sys.stderr)
{name}.main(["--seconds", "700"])
""")
    assert told == "True"


def test_the_process_must_be_the_one_that_listens() -> None:
    with Relay(honest) as relay:
        mine = tiny("latency.py", "--url", relay.url, "--pid", str(os.getpid()), "--rates", "1000")
        other = tiny("latency.py", "--url", relay.url, "--pid", str(os.getppid()))

    assert mine.returncode == 0, mine.stderr
    assert other.returncode == 2
    assert other.stderr.startswith(f"latency.py: argument --pid: process {os.getppid()} doesn't listen on port ")
    assert other.stderr.count("\n") == 1


ROOM = """
from array import array
from room import Room
room = Room("r")
sent = [room.message(0, 0, 40) for _ in range(3)] + [room.message(1, 0, 40)]
one, two = room.seat("one"), room.seat("two")
one.position = two.position = two.after = 0
def give(seat, *numbers):
    for number in numbers:
        room.take(seat, sent[number])
    if fault := room.missing(seat):
        raise SystemExit(fault)
give(one, 0, 1, 3, 2)
late = room.seat("late")
"""


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("give(two, 0, 1, 3, 2)", ""),
        ("give(two, 0, 1, 2, 3)", "two, room r, position 2: 2 where others had 3"),
        ("give(two, 0, 1, 3)", "two, room r: lacks 1 of 4 messages"),
        ("give(two, 0, 1, 3, 2, 2)", "two, room r, position 4: 2 a second time"),
        ("room.take(two, sent[0] + b'!')", "two, room r: a message never published"),
        (
            "room.take(two, sent[0], 1); room.base = 7; room.take(two, sent[1], 8)",
            "two, room r: offset 8 where 9 is due",
        ),
        (
            "late = room.seat('late'); late.after = 1; give(late, 3, 2)",
            "late, room r: never got 1, published after it came in",
        ),
        ("late = room.seat('late'); late.after = 3; give(late, 3, 2)", ""),
        (
            "room.order[0], room.order[1] = 1, 0; raise SystemExit(room.fault())",
            "room r: 0 after 1 of the same publisher",
        ),
    ],
)
def test_every_delivery_is_checked(code: str, fault: str) -> None:
    said = run_in_bench(f"{ROOM}\n{code}")

    assert said.removeprefix("dialects.BenchError: ").startswith(fault)
    assert bool(said) == bool(fault)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ("100", ""),
        ("100 + at % 3", ""),
        ("90 + at / 10 if at < 20 else 100", ""),  # what grows in the first fifth isn't judged
        ("100 + at / 10", "not flat: after the first fifth of the time grew memory by 7.5%"),
    ],
)
def test_what_is_flat(values: str, fault: str) -> None:
    code = f"""
import soak
samples = [{{"at": at, "memory_mb": {values}, "descriptors": 50}} for at in range(1, 101)]
soak.judge(samples, 3)
"""
    assert run_in_bench(code).removeprefix("dialects.BenchError: ") == fault


@pytest.mark.parametrize("script", TINY)
def test_wrong_flags_are_one_line_and_status_2(script: str) -> None:
    done = bench(script, "--json", "/nowhere/x")

    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: argument --json: [Errno 2]")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("connections.py --pid 1", "argument --pid: only with --url"),
        ("connections.py --hold 1", "argument --hold: 0, or a whole number from 2 expected, not '1'"),
        ("inbound.py --sizes 100,30", "argument --sizes: whole numbers from 31 expected, not '30'"),
        ("latency.py --warmup -1", "argument --warmup: a number from 0 expected, not '-1'"),
        ("order.py --url ws://localhost:1/chat/room", "argument --url: ws://HOST:PORT expected"),
        ("recovery.py --url ws://localhost:1 --pid 999999999", "argument --pid: there is no process 999999999"),
        ("rooms.py --connections 10 --rooms 3", "argument --rooms: each must divide --connections"),
        ("slow_consumer.py --connections 5 --stalled 5", "argument --stalled: leaves fewer readers than --publishers"),
        ("soak.py --size 30", "argument --size: a whole number from 31 expected, not '30'"),
    ],
)
def test_what_can_not_be_is_one_line_and_status_2(arguments: str, reason: str) -> None:
    script, *flags = arguments.split()
    done = bench(script, *flags)

    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}: {reason}")
    assert done.stderr.count("\n") == 1
