"""The comparison and the chat benchmark run, as far as that needs no rival; and who isn't there is named."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import test_bench
from test_bench_scripts import run_in_bench, stop_at_work

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need Linux")

BENCH = Path(__file__).parent.parent / "bench"
# A server on the port that comes last, in place of hubbub's: the faulty relay of test_bench.
FAULTY = "import test_compare; test_compare.serve()"
CONTEST = """
import dataclasses, sys
import compare, contest
fault, *arguments = sys.argv[1:]
if fault == "lose":  # only that one has to wait for it
    compare.DEADLINE_SECONDS = 3
command = [sys.executable, "-c", FAULTY, fault]
honest = contest.CONTESTANTS["hubbub"]
contest.CONTESTANTS["hubbub"] = dataclasses.replace(honest, prepare=lambda scratch: (command, "faulty 1"))
sys.exit(compare.main(arguments))
"""


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a script to its end."""
    command = [sys.executable, str(BENCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=80)


def test_chat(tmp_path: Path) -> None:
    """All that is said is heard by all, and costs something."""
    file = tmp_path / "out.json"
    short = ("--seconds", "0.3", "--warmup", "0.1", "--repeat", "1", "--no-pin")
    result = run("chat.py", "--clients", "8", "--batch", "3", *short, "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "median" in result.stdout
    assert json.loads(file.read_text())


def test_compare_with_nobody() -> None:
    """A table, the goals, and no figure where there is no rival."""
    result = run("compare.py", "--contestants", "hubbub", "--rows", "chat32", "--quick")
    assert result.returncode == 0, result.stderr
    assert "hubbub" in result.stdout
    assert "no figure" in result.stdout


def die(frames: list[bytes]) -> bytes:
    """A server that ends in the middle of it."""
    if len(frames) == 10:
        os._exit(3)
    return frames[-1]


def serve() -> None:
    """Be a faulty server: of a fault, on a port."""
    fault, port = {"die": die, "swap": test_bench.swap, "lose": test_bench.lose}[sys.argv[1]], int(sys.argv[2])
    test_bench.FAULTY = 0  # one whose every byte is compared
    with test_bench.Relay(fault, port):
        signal.pause()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("swap", r"saw another order, from position 9: "),
        ("lose", r"the deadline has passed; connection 0 lacks 102 of "),
        ("die", r"was closed by the server "),
    ],
)
def test_one_fault_disqualifies(fault: str, reason: str, tmp_path: Path) -> None:
    """The figure is "out", a sentence says why, and if it is hubbub that's no good result."""
    file = tmp_path / "out.json"
    arguments = ["--contestants", "hubbub", "--rows", "chat32", "--quick", "--rounds", "2", "--json", str(file)]
    code = f"FAULTY = {FAULTY!r}{CONTEST}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", code, fault, *arguments],
        cwd=BENCH,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1, result.stderr
    assert "compare.py: no result: hubbub isn't there, or is disqualified somewhere" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[2].split() == ["hubbub", "out"]
    (sentence,) = (line for line in result.stdout.splitlines() if line.startswith("Disqualified: hubbub in chat32: "))
    assert reason in sentence
    outcome: dict[str, Any] = json.loads(file.read_text())
    assert outcome["ok"] is False
    assert [fault["in"] for fault in outcome["disqualified"]] == ["chat32"]
    assert outcome["figures"] == {"hubbub": {}}


def test_a_server_that_ends_by_itself_is_out() -> None:
    """Even if that is the only thing that went wrong."""
    said = run_in_bench("""
import sys, time
from contest import Contestant, Entrant, Server
listening = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(0.3)"
dying = f"{listening}; print('no more'); sys.exit(3)"
contestant = Contestant("rival", "A rival", lambda scratch: ([], ""))
server = Server(Entrant(contestant, (sys.executable, "-c", dying), "1"), 10, None)
with server:
    server._process.wait()
""")
    assert said == "dialects.BenchError: A rival ended by itself with 3, and said: no more"


@pytest.mark.parametrize(
    ("rounds", "said"),
    [
        ([False, False, False], []),
        ([True, False, False], ["Disturbed: 1 of 3 single measurements"]),
        (
            [True, True, False],
            ["! disturbed in half the rounds: not a figure to quote", "Disturbed: 2 of 3 single measurements"],
        ),
    ],
)
def test_what_was_disturbed(rounds: list[bool], said: list[str]) -> None:
    """The mark is explained where there is one."""
    told = run_in_bench(f"""
from verdict import Outcome, sentences
results = [{{"cpu_us_per_delivery": 1.0, "disturbed": disturbed}} for disturbed in {rounds}]
outcome = Outcome({{"bun": "Bun"}}, ["r100"], {{}}, {{("bun", "r100"): results}}, notes=["a note"] * 7)
raise SystemExit("; ".join(sentences(outcome)))
""")
    assert [part.removesuffix(" (by what: --json)") for part in told.split("; ") if part] == said


def test_turns_are_drawn_anew() -> None:
    """In each round everybody has one turn a row, and not always the same before it; the seed tells which."""
    assert (
        run_in_bench("""
import contest
from compare import steps
from verdict import Outcome
names = ("hubbub", "floor", "coalesced", "bun", "structured")
entrants = [contest.Entrant(contest.CONTESTANTS[name], (), "") for name in names]
def turns(seed):
    wanted = Outcome({}, ["r100", "chat32"], {})
    return [(r, m, e.contestant.name) for r, m, e in steps(entrants, wanted, 5, seed)]
assert turns(1) == turns(1) != turns(2)
assert len(set(turns(1))) == len(turns(1)) == 5 * (5 + 4)
before = [turns(1)[i - 1][2] for i, turn in enumerate(turns(1)) if turn[2] == "bun" and i]
raise SystemExit(str(len(set(before)) > 2))
""")
        == "True"
    )


def test_what_is_no_python_is_left_out() -> None:
    """And the reason says so."""
    result = run("compare.py", "--contestants", "hubbub", "--hubbub-python", "/bin/echo", "--quick")
    assert result.returncode == 1
    assert "hubbub is left out: /bin/echo isn't a Python: asked for hubbub's version, it said '-c" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unfinished_environment_is_made_anew(tmp_path: Path) -> None:
    """One without pip would never get a rival."""
    python, made = tmp_path / "venv" / "bin" / "python", tmp_path / "made"
    python.parent.mkdir(parents=True)
    for file, does in ((python, "exit 1"), (tmp_path / "maker", f'echo "$@" > {made}')):
        file.write_text(f"#!/bin/sh\n{does}\n")
        file.chmod(0o755)
    code = f"import pathlib, contest; s = contest.Scratch(pathlib.Path({str(tmp_path)!r}), {str(tmp_path / 'maker')!r})"
    said = run_in_bench(f"{code}; s.python('websockets_server.py', ['websockets'])")
    assert said.startswith("contest.Missing: ")
    assert made.read_text() == f"-m venv --clear {tmp_path / 'venv'}\n"


def test_what_was_measured_before_it_was_stopped_is_told(tmp_path: Path) -> None:
    """No result, but the rounds so far."""
    file = tmp_path / "out.json"
    arguments = ("--contestants", "hubbub", "--rows", "chat32", "--seconds", "30", "--json", str(file))
    done = stop_at_work(signal.SIGINT, "compare.py", *arguments)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1] == "compare.py: no result: stopped by SIGINT"
    assert "hubbub: hubbub " in done.stdout
    outcome = json.loads(file.read_text())
    assert {"ok": False, "error": "stopped by SIGINT", "figures": {"hubbub": {}}}.items() <= outcome.items()


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare.py", "--rows", "r7"),
        ("compare.py", "--contestants", "nobody"),
        ("compare.py", "--rounds", "0"),
        ("compare.py", "--json", "/nowhere/x"),
        ("chat.py", "--size", "30"),
        ("chat.py", "--pid", "1"),
        ("chat.py", "--plot", "/nowhere/x"),
    ],
)
def test_mistakes_of_its_user(arguments: tuple[str, str, str]) -> None:
    """One line, and status 2."""
    script, flag, _ = arguments
    result = run(*arguments)
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith(f"{script}: argument {flag}: ")
    assert result.stderr.count("\n") == 1
