"""hubbub beside its rivals: the same work, on the same machine, in the same run.

    python bench/compare.py --json out.json
    python bench/compare.py --quick --rows r1000,bun32 --contestants hubbub,bun

See bench/README.md for the method, for the figures to expect, and for how to read them.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import chat
from contest import CONTESTANTS, Entrant, Scratch, Server, prepare, settings
from dialects import DIALECTS, BenchError
from fanout import Tell, repeat
from loadgen import (
    Collector,
    Progress,
    Target,
    clock,
    close_all,
    connect_all,
    cpu_time,
    notice,
    raise_file_limit,
    resident_kb,
)
from options import Parser
from report import WAITED_SHARE_MAX, Bench, Row, Stopped, machine, run
from verdict import ROWS, Outcome, draw, figures, goals, judge, ratios, sentences

MESSAGE_SIZE = 100  # bytes, of what a publisher says, in each dialect
STRUCTURED_SIZE = 224  # bytes: a push with a message of that size in it
RATE = 20_000  # deliveries a second, in r100 and r1000
OPENED_BEFORE, OPENED = 200, 1000  # connections: for a runtime to warm up, and those that are measured
DEADLINE_SECONDS = 60  # for a measurement, beyond what it should take

Measure = Callable[[Target, Entrant, argparse.Namespace, Progress, Tell], Row]


class Counting(Collector):
    """Checks as much, and computes no latencies: in bursts there are millions of them."""

    def _latencies_ms(self, order: Sequence[int]) -> list[float]:
        return []


def _bench(target: Target, entrant: Entrant, options: argparse.Namespace, **more: Any) -> Bench:
    """What fanout.py's `repeat` takes."""
    plain = entrant.contestant.dialect == "plain"
    common = {"target": target, "repeat": 1, "rate": RATE, "burst": 64, "batch": 1, "publishers": 10}
    common |= {"size": MESSAGE_SIZE if plain else STRUCTURED_SIZE, "mode": "chat"}
    common |= {"seconds": options.seconds, "warmup": options.warmup}
    common |= {"deadline": options.seconds + options.warmup + DEADLINE_SECONDS}
    return Bench("compare.py", argparse.Namespace(**{**common, **more}))


def _fan_out(mode: str, connections: int) -> Measure:
    def measure(target: Target, entrant: Entrant, options: argparse.Namespace, progress: Progress, tell: Tell) -> Row:
        wanted = _bench(target, entrant, options, mode=mode, connections=connections)
        collect = Collector if mode == "rate" else Counting
        return repeat(wanted, entrant.contestant.dialect, 0, collect=collect, progress=progress, tell=tell)

    return measure


def _chat(batch: int) -> Measure:
    def measure(target: Target, entrant: Entrant, options: argparse.Namespace, progress: Progress, tell: Tell) -> Row:
        wanted = _bench(target, entrant, options, connections=32, publishers=32, batch=batch)
        return chat.one(wanted, 0, progress, tell)

    return measure


def _open(target: Target, entrant: Entrant, options: argparse.Namespace, progress: Progress, tell: Tell) -> Row:
    """What connections cost to be opened, and then to be there and silent."""
    deadline = clock() + DEADLINE_SECONDS * 10**9
    dialect = DIALECTS[entrant.contestant.dialect](STRUCTURED_SIZE)
    dialect.begin(0)
    pid = target.pid or 0
    sockets = connect_all(target, OPENED_BEFORE, deadline, progress, dialect.join)
    try:
        time.sleep(0.5)
        cpu, resident = cpu_time(pid), resident_kb(pid)
        began = clock()
        sockets += connect_all(target, OPENED, deadline, progress, dialect.join)
        time.sleep(0.5)
        after, seconds = cpu_time(pid), (clock() - began) / 1e9
        grown = resident_kb(pid) - resident
    finally:
        close_all(sockets)
        progress.clear()
    waited = after.disturbed_since(cpu) / 1e9 / seconds
    if waited > WAITED_SHARE_MAX:
        tell(f"the server waited for its core {waited:.0%} of the time: other processes disturb")
    return {
        "memory_kb_per_connection": grown / OPENED,
        "cpu_us_per_handshake": (after.used - cpu.used) / 1e3 / OPENED,
        "disturbed": waited > WAITED_SHARE_MAX,
    }


MEASUREMENTS: dict[str, Measure] = {
    "r100": _fan_out("rate", 100),
    "r1000": _fan_out("rate", 1000),
    "c1_100": _fan_out("closed", 100),
    "c1_1000": _fan_out("closed", 1000),
    "s100": _fan_out("burst", 100),
    "s1000": _fan_out("burst", 1000),
    "chat32": _chat(batch=1),
    "bun32": _chat(batch=200),
    "open": _open,
}
CHATS = ("chat32", "bun32")  # whoever talks is in the room: not so in the structured dialect's benchmarks


def steps(entrants: Sequence[Entrant], outcome: Outcome, rounds: int, seed: int) -> Iterator[tuple[int, str, Entrant]]:
    """Everything there is to do. Everybody's turn is drawn anew each time, so that nobody always follows the same."""
    chance = random.Random(seed)
    wanted = dict.fromkeys(ROWS[row].measurement for row in outcome.rows)
    for round_ in range(rounds):
        for measurement in wanted:
            for entrant in chance.sample(entrants, len(entrants)):
                if entrant.contestant.dialect == "plain" or measurement not in CHATS:
                    yield round_, measurement, entrant


def compete(entrants: Sequence[Entrant], outcome: Outcome, options: argparse.Namespace, core: int | None) -> None:
    """Do all steps. Who fails in one is out of that measurement for good: one fault disqualifies."""
    todo = list(steps(entrants, outcome, options.rounds, options.seed))
    for done, (round_, measurement, entrant) in enumerate(todo):
        name, title = entrant.contestant.name, entrant.contestant.title
        if (name, measurement) in outcome.faults:
            continue
        progress = Progress(f"{done + 1}/{len(todo)} round {round_ + 1} {measurement} {title} ")
        progress.show("starting", 0)
        tell = partial(_note, outcome, f"{measurement}, {title}, round {round_ + 1}: ")
        try:
            with Server(entrant, OPENED + OPENED_BEFORE, core) as target:
                result = MEASUREMENTS[measurement](target, entrant, options, progress, tell)
        except (BenchError, OSError) as fault:
            notice(f"{title} is out in {measurement}")
            outcome.faults[name, measurement] = str(fault)
        else:
            outcome.results.setdefault((name, measurement), []).append(result)
        finally:
            progress.clear()


def _note(outcome: Outcome, where: str, what: str) -> None:
    outcome.notes.append(where + what)


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"of {','.join(known)} expected, not {unknown[0]!r}")
        return [name for name in known if name in names]

    return parse


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; wrong ones end the program with status 2."""
    parser = Parser("compare.py", "Measure hubbub beside its rivals.")
    for name, known in (("--rows", list(ROWS)), ("--contestants", list(CONTESTANTS))):
        of = f"of {', '.join(known)} (all)"
        parser.add_argument(name, type=_names(known), default=known, metavar="A,B", help=of)
    parser.whole("--rounds", None, "in each of which everyone does everything (5)")
    parser.real("--seconds", None, "to measure, each time (3)")
    parser.whole("--seed", 1, "of the order in which they take turns", least=0)
    quick = "one round of half a second each: to see that it works, not to quote"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.files()
    where = "where rivals are installed, and found the next time (bench/.scratch)"
    parser.add_argument("--scratch", default=str(Path(__file__).parent / ".scratch"), metavar="DIR", help=where)
    python = "the Python that has hubbub (this one)"
    parser.add_argument("--hubbub-python", default=sys.executable, metavar="FILE", help=python)
    options = parser.checked(arguments)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 3)
    options.warmup = 0.3 if options.quick else 1
    return options


def report(outcome: Outcome, judged: Sequence[dict[str, Any]]) -> str:
    """All tables and sentences."""
    parts = [figures(outcome)]
    if "hubbub" in outcome.titles:
        parts += [ratios(outcome), goals(judged)]
    parts.append("\n".join(sentences(outcome)))
    return "\n\n".join(filter(None, parts))


def measure(bench: Bench) -> None:
    """The contest. There is a result, but it is no good one, if hubbub isn't there or is disqualified anywhere."""
    options = bench.options
    raise_file_limit(OPENED + OPENED_BEFORE + 100)
    entrants, missing = prepare(options.contestants, Scratch(Path(options.scratch), options.hubbub_python))
    for title, reason in missing.items():
        notice(f"{title} is left out: {reason}")
    if not entrants:
        raise BenchError("nobody is there to be measured")
    outcome = Outcome({e.contestant.name: e.contestant.title for e in entrants}, options.rows, missing)
    try:
        compete(entrants, outcome, options, bench.cores[0] if bench.cores else None)
    except Stopped:
        notice("stopped: these are the rounds so far")
        raise
    finally:
        conclude(bench, outcome, entrants)
    asked = [name for name in ("hubbub", "structured") if name in options.contestants]
    if out := [name for name in asked if name not in outcome.titles or name in {who for who, _ in outcome.faults}]:
        raise BenchError(f"{' and '.join(out)} isn't there, or is disqualified somewhere")


def conclude(bench: Bench, outcome: Outcome, entrants: Sequence[Entrant]) -> None:
    """Print all that is known by now, note it for the JSON file, and draw it."""
    judged = judge(outcome)
    print(report(outcome, judged))
    print("\n{cpu}, {cores} cores, {system}; Python {python}".format(**machine()))
    for entrant in entrants:
        print(f"{entrant.contestant.title}: {entrant.version}")
    for title, told in told_settings(entrants).items():
        print(f"{title}'s settings, all else at its defaults: " + " ".join(f"{k}={v}" for k, v in told.items()))
    bench.outcome.update(record(outcome, judged, entrants))
    draw(outcome, bench.options.plot)


def told_settings(entrants: Sequence[Entrant]) -> dict[str, dict[str, str]]:
    """What hubbub is told, by title: fanout.py's settings, and what the caller's shell says, which wins."""
    shell = {name: value for name, value in os.environ.items() if name.startswith("HUBBUB_")}
    wanted = {e.contestant.title: settings(e.contestant, OPENED + OPENED_BEFORE) for e in entrants}
    return {title: {**own, **shell} for title, own in wanted.items() if own}


def record(outcome: Outcome, judged: Sequence[dict[str, Any]], entrants: Sequence[Entrant]) -> dict[str, object]:
    """Everything, for the JSON file."""
    results: dict[str, dict[str, list[Row]]] = {}
    for (name, measurement), rounds in outcome.results.items():
        results.setdefault(name, {})[measurement] = rounds
    medians = {
        name: {row: figure._asdict() for row in outcome.rows if (figure := outcome.figure(name, row))}
        for name in outcome.titles
    }
    return {
        "settings": told_settings(entrants),
        "versions": {e.contestant.name: e.version for e in entrants},
        "missing": dict(outcome.missing),
        "disqualified": [{"who": w, "in": m, "why": why} for (w, m), why in outcome.faults.items()],
        "notes": outcome.notes,
        "figures": medians,
        "goals": list(judged),
        "results": results,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contest; 0, or 1 if nobody is there, or hubbub isn't, or is disqualified anywhere."""
    return run("compare.py", parse_options(arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
