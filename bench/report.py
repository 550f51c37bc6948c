"""What the benchmarks have in common beside their load and options: a daemon, CPU time, and how results are told."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import platform
import secrets
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from dialects import BenchError
from loadgen import CpuTime, Daemon, Progress, Target, clock, cpu_time, notice, pin, raise_file_limit, table, two_cores
from probe import metrics

Row = dict[str, float | None]
Columns = Mapping[str, tuple[str, str]]  # of a table: the name in the JSON, the title, the format
Case = TypeVar("Case")
WAITED_SHARE_MAX = 0.02  # beyond it a row is marked as disturbed
PAUSES = "hubbub_rate_pauses_total"
FROM_OUTSIDE = {"HUBBUB_ALLOW_PUBLISH": "anonymous"}  # the setting where some publish who aren't in the room
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PLACES = frozenset({"json", "plot", "scratch", "hubbub_python"})
"""Options that say where things are on this machine, and nothing of the result."""


def environment(connections: int) -> dict[str, str]:
    """The daemon's settings, where the scenario needs others than the defaults.

    A ping would look like a wrong count of bytes, so none must be due. The publishers are faster than any client
    may be by default: the rates are on, and never reached.
    """
    return {
        "HUBBUB_CONNECTIONS_MAX": str(max(10_000, connections + 100)),
        "HUBBUB_PING_SECONDS": "86400",
        "HUBBUB_PUBLICATIONS_PER_SECOND_MAX": "10000000",
        "HUBBUB_PUBLICATIONS_BURST_MAX": "10000000",
        "HUBBUB_PUBLICATION_BYTES_PER_SECOND_MAX": str(2**30),
        "HUBBUB_PUBLICATION_BYTES_BURST_MAX": str(2**30),
    }


class Stopped(BaseException):
    """One of SIGNALS came. Not an Exception: all there is to do about it is to stop what was started."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


def machine() -> dict[str, Any]:
    """What figures depend on, beside the code: the processor, the kernel, the generator's Python."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    """The processor as the kernel names it; where it doesn't, as on some ARM, its architecture."""
    with open("/proc/cpuinfo") as file:
        names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
        return next(names, platform.machine())


def commit(file: Path) -> str | None:
    """The commit of the checkout that a file belongs to, with a + if anything was changed since; None if of none."""
    git = ["git", "-C", str(file.parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], check=True, capture_output=True)
        described = [*git, "describe", "--always", "--abbrev=10", "--dirty=+", "--exclude=*"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@dataclass
class Bench:
    """One run of a benchmark: its options, where its processes run, and what came out."""

    name: str
    options: argparse.Namespace
    cores: tuple[int, int] | None = None
    outcome: dict[str, Any] = field(default_factory=dict)
    visits: int = 0  # how often a server was used, which is the same each time if it is at --url

    @property
    def target(self) -> Target | None:
        """What --url says."""
        return getattr(self.options, "target", None)

    def deadline(self) -> int:
        """When a measurement that begins now must be over."""
        return clock() + int(self.options.deadline * 1e9)

    @contextlib.contextmanager
    def daemon(
        self,
        connections: int,
        settings: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        path: str = "/chat/bench",
    ) -> Iterator[Target]:
        """The server: a fresh daemon, or the one at --url."""
        raise_file_limit(connections + 100)
        self.visits += 1
        if self.target:
            yield self.target
            return
        wanted = {**environment(connections), **(settings or {})}
        core = self.cores[0] if self.cores else None
        with Daemon(path, self.deadline(), wanted, core, arguments) as target:
            yield target

    @contextlib.contextmanager
    def hubbub(
        self, connections: int, settings: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
    ) -> Iterator[Target]:
        """The same where nothing but hubbub will do; there is no result if the one at --url held publishers back."""
        with self.daemon(connections, settings, arguments) as target:
            before = metrics(target)[PAUSES] if self.target else 0
            yield target
            if self.target and (pauses := metrics(target)[PAUSES] - before):
                raise BenchError(
                    f"the server at --url made publishers pause, {pauses:.0f} times, as they were over their rates: "
                    "its publications_… and publication_bytes_… limits must be higher"
                )

    def needs(self, connections: int, *more: str) -> None:
        """Say what the server at --url must be like: it can't be set to it here, as a fresh daemon can."""
        if self.target:
            always = (f"connections_max {connections:,} or more", "rates that are never met", "no metrics_address")
            notice(f"the server at --url must have: {', '.join((*always, *more))}")

    def room(self, name: str) -> str:
        """The name for a room: at --url one that nobody else will have, in the same namespace."""
        namespace, colon, rest = name.rpartition(":")
        return f"{namespace}{colon}bench-{rest}-{secrets.token_hex(4)}" if self.target else name

    def must_be_of_others(self, ended: Mapping[str, int]) -> None:
        """Given why connections ended: raise if the server ended some, all clients having behaved; at --url say so."""
        unexpected = {reason: number for reason, number in ended.items() if not reason.startswith("peer_")}
        if unexpected and self.target is None:
            raise BenchError(f"the server ended well-behaved connections: {unexpected}")
        if unexpected:
            notice(f"the server at --url ended connections meanwhile, none of them of these clients: {unexpected}")

    @property
    def tells_memory(self) -> bool:
        """Whether memory may be compared: an old process hands out again what earlier connections gave back."""
        return self.target is None or (self.target.pid is not None and self.visits == 1)

    @contextlib.contextmanager
    def progress(self, prefix: str) -> Iterator[Progress]:
        """A bar that is gone afterwards."""
        progress = Progress(f"{prefix} ")
        try:
            yield progress
        finally:
            progress.clear()

    def repeated(
        self, cases: Mapping[Case, str], one: Callable[[Bench, str, Case], Row]
    ) -> tuple[dict[Case, list[Row]], dict[Case, Row]]:
        """Every case, which has a label, in turn, and that as often as asked for: the rows, and their medians."""
        rows: dict[Case, list[Row]] = {case: [] for case in cases}
        for i in range(self.options.repeat):
            for case, label in cases.items():
                rows[case].append(one(self, f"{i + 1}/{self.options.repeat} {label}", case))
        return rows, {case: medians(found) for case, found in rows.items()}


def run(name: str, options: argparse.Namespace, measure: Callable[[Bench], None]) -> int:
    """Measure, and write the JSON; 0, 1 if there is no result or it fails its check, 128 + n if signal n stopped it."""
    unpinned = getattr(options, "no_pin", False)
    bench = Bench(name, options, None if unpinned else two_cores())
    bench.outcome = {
        "ok": False,
        "options": {
            **{option: value for option, value in vars(options).items() if option not in PLACES},
            "target": str(bench.target or "own daemon"),
        },
        "settings": {name: value for name, value in os.environ.items() if name.startswith("HUBBUB_")},
        "machine": {**machine(), "pinned": bench.cores},
    }
    status = 1
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it, and a shell of what runs in the background
            signal.signal(number, _stop)
    try:
        if found := commit(Path(__file__)):
            bench.outcome["commit"] = found
        if bench.cores:
            os.sched_setaffinity(0, {bench.cores[1]})
            if bench.target and bench.target.pid:
                pin(bench.target.pid, bench.cores[0])
        else:
            notice("nothing is pinned" + ("" if unpinned else ": there is only one core"))
        measure(bench)
        bench.outcome["ok"] = True
        status = 0
    except (BenchError, OSError, Stopped) as error:
        print(f"{name}: no result: {error}", file=sys.stderr)
        bench.outcome["error"] = str(error)
        status = error.status if isinstance(error, Stopped) else 1
    finally:
        _ignore_signals()
        if options.json:
            with open(options.json, "w") as file:
                json.dump(bench.outcome, file, indent=2)
                file.write("\n")
    return status


def _stop(number: int, _: FrameType | None) -> None:
    _ignore_signals()  # a second one would interrupt the stopping of what was started
    raise Stopped(number)


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without garbage collection: its pauses would be in what is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
        waited = [server.disturbed_since(server_before) / passed, mine.disturbed_since(mine_before) / passed]
        return {
            "seconds": passed / 1e9,
            "cpu_us": (server.used - server_before.used) / 1e3 if self._pid else None,
            "cpu_share": (server.used - server_before.used) / passed if self._pid else None,
            "server_waited_share": waited[0],
            "generator_waited_share": waited[1],
            "disturbed": max(waited) > WAITED_SHARE_MAX,
        }

    def _now(self) -> tuple[CpuTime, CpuTime]:
        return cpu_time(self._pid) if self._pid else CpuTime(), cpu_time(os.getpid())


def per(amount: float | None, number: float) -> float | None:
    """A share of an amount, if that is known: of a server at --url it may not be."""
    return None if amount is None else amount / number


def medians(rows: Sequence[Row]) -> Row:
    """Column by column; disturbed if half the rows are."""
    middle: Row = {}
    for name in rows[0]:
        values = [value for row in rows if (value := row[name]) is not None]
        middle[name] = statistics.median(values) if values else None
    return {**middle, "disturbed": bool(middle.get("disturbed"))}


def ratio(row: Row, other: Row, columns: Iterable[str]) -> Row:
    """Column by column, how many times the other it is; disturbed if either is."""
    pairs = {column: (row[column], other[column]) for column in columns}
    quotients = {column: one / two if one and two else None for column, (one, two) in pairs.items()}
    return {**quotients, "disturbed": bool(row["disturbed"] or other["disturbed"])}


def tell_disturbed(rows: Iterable[Row]) -> None:
    """Below a table: whether any of its rows is no figure to quote, and how bad it was."""
    disturbed = [row for row in rows if row["disturbed"]]
    if not disturbed:
        return
    print("! disturbed: not a figure to quote")
    shares = [max(row.get(f"{who}_waited_share") or 0 for row in disturbed) for who in ("server", "generator")]
    if any(shares):
        notice(f"the server waited up to {shares[0]:.0%} of the time for its core, the generator up to {shares[1]:.0%}")


def show(title: str, rows: Sequence[tuple[str, Row]], columns: Columns, quotients: Row | None = None) -> None:
    """Print a table: the rows by name, and what they are to each other."""
    lines = [_cells(name, row, columns) for name, row in rows]
    if quotients:
        lines.append(_cells("ratio", quotients, {name: (heading, "{:.2f}") for name, (heading, _) in columns.items()}))
    print(table([title, *(heading for heading, _ in columns.values())], lines))


def _cells(name: str, row: Row, columns: Columns) -> list[str]:
    values = ((row.get(column), form) for column, (_, form) in columns.items())
    return [
        "! " * bool(row.get("disturbed")) + name,
        *("-" if value is None else form.format(value) for value, form in values),
    ]


def draw_repeats(figure: Any, results: Mapping[str, Sequence[Row]], columns: Columns, shown: Sequence[str]) -> None:
    """A bar for each repeat, of all that were measured in turn; a picture for each of the columns shown."""
    width = 0.8 / len(results)
    for axes, name in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for index, (label, rows) in enumerate(results.items()):
            places = [number + (index - (len(results) - 1) / 2) * width for number in range(1, len(rows) + 1)]
            axes.bar(places, [row[name] or 0 for row in rows], width, label=label)
        axes.set(title=columns[name][0], xlabel="repeat", xticks=range(1, max(map(len, results.values())) + 1))
    if len(results) > 1:
        figure.legend(loc="outside right")


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
