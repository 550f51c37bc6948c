"""What the benchmarks have in common beside their load: options, a daemon, CPU time, and how results are told."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import platform
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import fanout
from dialects import BenchError
from fanout import WAITED_SHARE_MAX, Parser, environment
from loadgen import CpuTime, Daemon, Progress, Target, clock, cpu_time, notice, pin, raise_file_limit, two_cores

Row = dict[str, float | None]
number = fanout._number
count = number(int, 1, "a whole number from 1")
counts_from_0 = number(int, 0, "a whole number from 0")
seconds = number(float, 0.01, "a number from 0.01")


def listed(parse: Callable[[str], float]) -> Callable[[str], list[float]]:
    """A list with commas, of such numbers."""
    return lambda text: [parse(part) for part in text.split(",")]


def parser(name: str, description: str, *, url: bool = False) -> Parser:
    """With the options that all have: --json, --plot, --deadline, --no-pin; and --url, --pid where it can be told."""
    made = Parser(prog=name, description=description, allow_abbrev=False)
    add = made.add_argument
    if url:
        add(
            "--url",
            type=fanout._target,
            dest="target",
            metavar="ws://HOST:PORT/PATH",
            help="a room of a running server",
        )
        add("--pid", type=count, help="the process behind --url: for its CPU time and memory")
    add("--json", metavar="FILE", help="write the result there, too")
    add("--plot", metavar="FILE", help="draw it there, as SVG (needs matplotlib)")
    add("--deadline", type=seconds, default=600, metavar="SECONDS", help="for each measurement (600)")
    add("--no-pin", action="store_true", help="don't pin the daemon to one core and the generator to another")
    return made


def checked(made: Parser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; what can't be used ends the program with status 2."""
    options = made.parse_args(arguments)
    pid = getattr(options, "pid", None)
    if pid and not options.target:
        made.error("argument --pid: only with --url")
    if pid and not os.path.exists(f"/proc/{pid}"):
        made.error(f"argument --pid: there is no process {pid}")
    if pid:
        options.target = replace(options.target, pid=pid)
    if options.plot and not importlib.util.find_spec("matplotlib"):
        made.error("argument --plot: needs matplotlib, which isn't installed: pip install matplotlib")
    for name in ("json", "plot"):
        if file := getattr(options, name):
            try:
                open(file, "a").close()
            except OSError as error:
                made.error(f"argument --{name}: {error}")
    return options


@dataclass
class Bench:
    """One run of a benchmark: its options, where its processes run, and what came out."""

    name: str
    options: argparse.Namespace
    cores: tuple[int, int] | None = None
    outcome: dict[str, Any] = field(default_factory=dict)

    def deadline(self) -> int:
        """When a measurement that begins now must be over."""
        return clock() + int(self.options.deadline * 1e9)

    @contextlib.contextmanager
    def daemon(
        self, connections: int, settings: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
    ) -> Iterator[Target]:
        """The server: a fresh daemon, or the one at --url."""
        raise_file_limit(connections + 100)
        if given := getattr(self.options, "target", None):
            yield given
            return
        wanted = {**environment(connections), **(settings or {})}
        core = self.cores[0] if self.cores else None
        with Daemon("/chat/bench", self.deadline(), wanted, core, arguments) as target:
            yield target

    @contextlib.contextmanager
    def progress(self, prefix: str) -> Iterator[Progress]:
        """A bar that is gone afterwards."""
        progress = Progress(f"{prefix} ")
        try:
            yield progress
        finally:
            progress.clear()


def run(name: str, options: argparse.Namespace, measure: Callable[[Bench], None]) -> int:
    """Measure, and write the JSON; 0, or 1 if there is no result or it fails its check."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of stopping the daemon
    bench = Bench(name, options, None if options.no_pin else two_cores())
    target = getattr(options, "target", None)
    bench.outcome = {
        "ok": False,
        "options": {**vars(options), "target": str(target or "own daemon")},
        "settings": {name: value for name, value in os.environ.items() if name.startswith("HUBBUB_")},
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "pinned": bench.cores,
        },
    }
    status = 1
    try:
        if bench.cores:
            os.sched_setaffinity(0, {bench.cores[1]})
            if target and target.pid:
                pin(target.pid, bench.cores[0])
        else:
            notice("nothing is pinned" + ("" if options.no_pin else ": there is only one core"))
        measure(bench)
        bench.outcome["ok"] = True
        status = 0
    except (BenchError, OSError) as error:
        print(f"{name}: no result: {error}", file=sys.stderr)
        bench.outcome["error"] = str(error)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(bench.outcome, file, indent=2)
            file.write("\n")
    return status


class Watch:
    """CPU time of the server and of this process, over a while."""

    def __init__(self, target: Target) -> None:
        self._pid = target.pid
        self.start()

    def start(self) -> None:
        """It begins now."""
        self._began, self._before = clock(), self._now()

    def stop(self) -> Row:
        """Seconds passed, server CPU µs used, the shares of the time that both waited for their cores."""
        passed = clock() - self._began
        (server, mine), (server_before, mine_before) = self._now(), self._before
        waited = [(server.waited - server_before.waited) / passed, (mine.waited - mine_before.waited) / passed]
        return {
            "seconds": passed / 1e9,
            "cpu_us": (server.used - server_before.used) / 1e3 if self._pid else None,
            "cpu_share": (server.used - server_before.used) / passed if self._pid else None,
            "server_waited_share": waited[0],
            "generator_waited_share": waited[1],
            "disturbed": max(waited) > WAITED_SHARE_MAX,
        }

    def _now(self) -> tuple[CpuTime, CpuTime]:
        return cpu_time(self._pid) if self._pid else CpuTime(0, 0), cpu_time(os.getpid())


def medians(rows: Sequence[Row]) -> Row:
    """Column by column; disturbed if half the rows are."""
    middle: Row = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        middle[name] = statistics.median(values) if values else None
    return {**middle, "disturbed": bool(middle.get("disturbed"))}


def tell_disturbed(rows: Iterable[Row]) -> None:
    """Below a table: whether any of its rows is no figure to quote, and how bad it was."""
    disturbed = [row for row in rows if row["disturbed"]]
    if not disturbed:
        return
    print("! disturbed: not a figure to quote")
    shares = [max(row.get(f"{who}_waited_share") or 0 for row in disturbed) for who in ("server", "generator")]
    notice(f"the server waited up to {shares[0]:.0%} of the time for its core, the generator up to {shares[1]:.0%}")


def cells(name: str, row: Row, columns: Mapping[str, tuple[str, str]]) -> list[str]:
    """A line of a table: `columns` has the titles and formats."""
    values = ((row.get(column), form) for column, (_, form) in columns.items())
    return [
        "! " * bool(row.get("disturbed")) + name,
        *("-" if value is None else form.format(value) for value, form in values),
    ]


def plot(file: str | None, title: str, draw: Callable[[Any], None], size: tuple[float, float] = (8, 5)) -> None:
    """Draw on a matplotlib figure and save it as SVG; nothing if there is no file to draw into."""
    if not file:
        return
    figures = importlib.import_module("matplotlib.figure")  # late: only who wants a picture needs it
    importlib.import_module("matplotlib").rcParams["svg.hashsalt"] = title  # the same picture, the same file
    figure = figures.Figure(figsize=size, layout="constrained")
    figure.suptitle(title)
    draw(figure)
    figure.savefig(file, format="svg", metadata={"Date": None})
