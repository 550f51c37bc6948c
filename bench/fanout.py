"""Fan-out: what one room costs the daemon when everything published goes to everyone in it.

    python bench/fanout.py --connections 1000 --mode rate

See bench/README.md for the method and for how to read the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn
from urllib.parse import urlsplit

from dialects import DIALECTS, BenchError
from loadgen import (
    Collector,
    CpuTime,
    Daemon,
    Progress,
    Run,
    Target,
    clock,
    close_all,
    connect_all,
    cpu_time,
    notice,
    percentile,
    pin,
    raise_file_limit,
    resident_kb,
    table,
    two_cores,
)

# Beyond these a repeat is marked as disturbed.
WAITED_SHARE_MAX = 0.02
LATE_MS_MAX = 1.0

Result = dict[str, float | None]
Tell = Callable[[str], None]
Times = tuple[CpuTime, CpuTime]  # of the daemon, and of this process
COLUMNS = {  # of the table: the name in the JSON, the title, the format
    "cpu_us_per_delivery": ("CPU µs/delivery", "{:.2f}"),
    "deliveries_per_second": ("deliveries/s", "{:,.0f}"),
    "latency_p50_ms": ("p50 ms", "{:.3f}"),
    "latency_p99_ms": ("p99 ms", "{:.3f}"),
    "memory_kb_per_connection": ("KB/connection", "{:.1f}"),
}


# The three ways of publishing. Each returns how late, in ms, its publications were sent (where that means
# anything), and leaves the collector with everything delivered.


def at_rate(collector: Collector, options: argparse.Namespace, seconds: float) -> list[float]:
    """Publish at times fixed beforehand, whatever the daemon does; latency counts from those times."""
    interval = options.connections / options.rate * 1e9
    due = [int(i * interval) for i in range(max(1, int(seconds * 1e9 / interval)))]
    frames = [collector.frame(i % options.publishers, at) for i, at in enumerate(due)]
    late = []
    collector.start()
    for i, at in enumerate(due):
        collector.collect()
        while (now := collector.now()) < at:
            collector.collect()
        collector.publish(i % options.publishers, frames[i])
        late.append((now - at) / 1e6)
    collector.drain()
    return late


def closed(collector: Collector, options: argparse.Namespace, seconds: float) -> list[float]:
    """Publish the next message when everyone has the last."""
    return _in_turn(collector, options.publishers, seconds, burst=1)


def bursts(collector: Collector, options: argparse.Namespace, seconds: float) -> list[float]:
    """Publish several messages in one send, and the next such burst when everyone has the last."""
    return _in_turn(collector, options.publishers, seconds, options.burst)


def _in_turn(collector: Collector, publishers: int, seconds: float, burst: int) -> list[float]:
    turn = 0
    collector.start()
    while (now := collector.now()) < seconds * 1e9:
        publisher = turn % publishers
        collector.publish(publisher, b"".join(collector.frame(publisher, now) for _ in range(burst)), burst)
        collector.drain()
        turn += 1
    return []


MODES: dict[str, Callable[[Collector, argparse.Namespace, float], list[float]]] = {
    "rate": at_rate,
    "closed": closed,
    "burst": bursts,
}


def repeat(
    options: argparse.Namespace,
    name: str,
    number: int,
    cores: tuple[int, int] | None,
    *,
    publish: Callable[[Collector, argparse.Namespace, float], list[float]] | None = None,
    collect: type[Collector] = Collector,
    progress: Progress | None = None,
    tell: Tell = notice,
) -> Result:
    """One repeat: a fresh daemon (or that at --url) and connections, the warm-up, the measurement.

    Other benchmarks `publish` otherwise than by --mode, `collect` otherwise, and `tell` elsewhere what disturbed.
    """
    deadline = clock() + int(options.deadline * 1e9)
    progress = progress or Progress(f"{name} {number + 1}/{options.repeat} ")
    dialect = DIALECTS[name](options.size)
    apart = options.publishers if dialect.publishers_apart else 0
    with contextlib.ExitStack() as stack:
        stack.callback(progress.clear)
        target: Target = options.target or stack.enter_context(
            Daemon(dialect.path, deadline, environment(options.connections + apart), cores[0] if cores else None)
        )
        resident = 0
        if target.pid:  # what is imported and cached for the first connection is not a connection's memory
            close_all(connect_all(target, 1, deadline, progress, dialect.join))
            time.sleep(0.3)
            resident = resident_kb(target.pid)
        sockets = connect_all(target, options.connections, deadline, progress, dialect.join)
        stack.callback(close_all, sockets)
        time.sleep(0.3)
        memory = resident_kb(target.pid) - resident if target.pid else 0

        publishers = connect_all(target, apart, deadline, progress, dialect.introduce)
        stack.callback(close_all, publishers)
        collector = stack.enter_context(collect(sockets, publishers, dialect, deadline, progress))
        collector.settle()
        if collector.received:
            tell(f"{collector.received} bytes came before anything was published; they are ignored")
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        publish = publish or MODES[options.mode]
        if options.warmup:
            collector.begin("warm-up", options.warmup)
            publish(collector, options, options.warmup)
            collector.settle()
            collector.finish()
        collector.begin("measuring", options.seconds)
        before = _cpu_times(target)
        late = publish(collector, options, options.seconds)
        collector.settle()
        after = _cpu_times(target)
        run = collector.finish()
    # An old process hands out again what earlier connections gave back: only its first repeat tells.
    memory_told = memory / len(sockets) if target.pid and not (options.target and number) else None
    return {**_result(options, run, late, before, after, tell), "memory_kb_per_connection": memory_told}


def _result(
    options: argparse.Namespace, run: Run, late: list[float], before: Times, after: Times, tell: Tell
) -> Result:
    """The figures of a run; `late` in ms."""
    seconds = max(run.seconds, options.seconds) if options.mode == "rate" else run.seconds
    used = (after[0].used - before[0].used) / 1e9
    waited = [(end.waited - start.waited) / 1e9 / seconds for start, end in zip(before, after, strict=True)]
    for who, share in zip(("daemon", "generator"), waited, strict=True):
        if share > WAITED_SHARE_MAX:
            tell(f"the {who} waited for its core {share:.0%} of the time: other processes disturb")
    late_p99 = percentile(sorted(late), 0.99) if late else None
    if late_p99 and late_p99 > LATE_MS_MAX:
        tell(f"publications were sent up to {late_p99:.1f} ms late (p99), so in bunches, which are cheaper")
    return {
        "cpu_us_per_delivery": used / run.deliveries * 1e6 if after[0].used else None,
        "deliveries_per_second": run.deliveries / seconds,
        "latency_p50_ms": percentile(run.latencies_ms, 0.5) if run.latencies_ms else None,
        "latency_p99_ms": percentile(run.latencies_ms, 0.99) if run.latencies_ms else None,
        "cpu_share": used / seconds if after[0].used else None,
        "publications": run.publications,
        "deliveries": run.deliveries,
        "seconds": seconds,
        "late_p99_ms": late_p99,
        "daemon_waited_share": waited[0] if after[0].used else None,
        "generator_waited_share": waited[1],
        "disturbed": max(waited) > WAITED_SHARE_MAX or (late_p99 or 0) > LATE_MS_MAX,
    }


def _cpu_times(target: Target) -> Times:
    """Of the daemon (zero if unknown) and of this process."""
    return cpu_time(target.pid) if target.pid else CpuTime(0, 0), cpu_time(os.getpid())


def environment(connections: int) -> dict[str, str]:
    """The daemon's settings, where the scenario needs others than the defaults.

    A ping would look like a wrong count of bytes, so none must be due. The publishers are faster than any client
    may be by default: the rates are on, and never reached.
    """
    return {
        "HUBBUB_CONNECTIONS_MAX": str(max(10_000, connections + 100)),
        "HUBBUB_PING_SECONDS": "86400",
        "HUBBUB_ALLOW_PUBLISH": "anonymous",  # publishers of the structured dialect aren't in the room
        "HUBBUB_PUBLICATIONS_PER_SECOND_MAX": "10000000",
        "HUBBUB_PUBLICATIONS_BURST_MAX": "10000000",
        "HUBBUB_PUBLICATION_BYTES_PER_SECOND_MAX": str(2**30),
        "HUBBUB_PUBLICATION_BYTES_BURST_MAX": str(2**30),
    }


def medians(results: Sequence[Result]) -> Result:
    """Column by column; disturbed if half the repeats are."""
    middle: Result = {}
    for name in results[0]:
        values = [value for result in results if (value := result[name]) is not None]
        middle[name] = statistics.median(values) if values else None
    return {**middle, "disturbed": bool(middle["disturbed"])}


def ratios(median: Result, other: Result) -> Result:
    """Column by column of the table, how many times the other it is; disturbed if either is."""
    pairs = {column: (median[column], other[column]) for column in COLUMNS}
    quotients = {column: one / two if one and two else None for column, (one, two) in pairs.items()}
    return {**quotients, "disturbed": bool(median["disturbed"] or other["disturbed"])}


def report(rows: Mapping[str, Result], ratio: Result | None = None) -> str:
    """The table: a line for each repeat, the medians, and their ratio."""

    def cells(name: str, result: Result, forms: Sequence[str]) -> list[str]:
        values = zip((result[column] for column in COLUMNS), forms, strict=True)
        return [
            "! " * bool(result["disturbed"]) + name,
            *("-" if value is None else form.format(value) for value, form in values),
        ]

    lines = [cells(name, result, [form for _, form in COLUMNS.values()]) for name, result in rows.items()]
    lines += [cells("ratio", ratio, ["{:.2f}"] * len(COLUMNS))] if ratio else []
    text = table(["repeat", *(title for title, _ in COLUMNS.values())], lines)
    return text + ("\n! disturbed: not a figure to quote" if any(r["disturbed"] for r in rows.values()) else "")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _number(convert: Callable[[str], float], least: float, what: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = -1
        if not least <= value < 1e9:
            raise argparse.ArgumentTypeError(f"{what} expected, not {text!r}")
        return value

    return parse


def _target(text: str) -> Target:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or not port or url.scheme != "ws":
        raise argparse.ArgumentTypeError(f"ws://HOST:PORT/PATH expected, not {text!r}")
    return Target(host, port, (url.path or "/") + (f"?{url.query}" if url.query else ""))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; wrong ones end the program with status 2."""
    count, seconds = _number(int, 1, "a whole number from 1"), _number(float, 0.01, "a number from 0.01")
    parser = Parser(prog="fanout.py", description="Measure what one room costs the daemon.", allow_abbrev=False)
    add = parser.add_argument
    add("--url", type=_target, dest="target", metavar="ws://HOST:PORT/PATH", help="a room of a running daemon")
    add("--pid", type=count, help="the process behind --url: for its CPU time and memory")
    add("--dialect", choices=DIALECTS, default="plain", help="what is spoken in the room (plain)")
    add("--against", choices=DIALECTS, metavar="DIALECT", help="measure that, too, in turn, and tell the ratio")
    add("--connections", type=count, default=100, metavar="N", help="subscribers in the room (100)")
    add(
        "--publishers",
        type=count,
        metavar="N",
        help="how many publish in turn: of the connections in plain, besides them in centrifugo (10, or all if fewer)",
    )
    add("--mode", choices=MODES, default="rate", help="when to publish (rate)")
    add("--rate", type=seconds, default=20000, metavar="N", help="deliveries a second, in mode rate (20000)")
    add("--burst", type=count, default=64, metavar="N", help="publications in one send, in mode burst (64)")
    add(
        "--size",
        type=count,
        metavar="BYTES",
        help="of a delivery's payload (100 in plain, 200 where centrifugo is measured)",
    )
    add("--seconds", type=seconds, default=5, help="to measure (5)")
    add("--warmup", type=_number(float, 0, "a number from 0"), default=1, metavar="SECONDS", help="before it (1)")
    add("--repeat", type=count, default=3, metavar="N", help="times, each with a fresh daemon (3)")
    add("--deadline", type=seconds, metavar="SECONDS", help="for a repeat (30 more than it should take)")
    add("--json", metavar="FILE", help="write the result there, too")
    add("--no-pin", action="store_true", help="don't pin the daemon to one core and the generator to another")
    options = parser.parse_args(arguments)
    measured = [DIALECTS[name] for name in (options.dialect, options.against) if name]
    if options.against == options.dialect:
        parser.error("argument --against: the same as --dialect")
    if options.against and options.target:
        parser.error("argument --against: not with --url, whose path belongs to one dialect")
    least = max(dialect.size_min for dialect in measured)
    options.size = options.size or max(dialect.size_default for dialect in measured)
    if options.size < least:
        parser.error(f"argument --size: a whole number from {least} expected, not '{options.size}'")
    options.publishers = options.publishers or min(10, options.connections)
    if options.publishers > options.connections and not all(dialect.publishers_apart for dialect in measured):
        parser.error("argument --publishers: more than --connections")
    if options.pid and not options.target:
        parser.error("argument --pid: only with --url")
    if options.pid and not os.path.exists(f"/proc/{options.pid}"):
        parser.error(f"argument --pid: there is no process {options.pid}")
    if options.pid:
        options.target = replace(options.target, pid=options.pid)
    if options.json:
        try:
            open(options.json, "a").close()
        except OSError as error:
            parser.error(f"argument --json: {error}")
    options.deadline = options.deadline or options.warmup + options.seconds + options.connections / 100 + 30
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    options = parse_options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of stopping the daemon
    outcome: dict[str, object] = {
        "ok": False,
        "options": {**vars(options), "target": str(options.target or "own daemon")},
        "settings": {name: value for name, value in os.environ.items() if name.startswith("HUBBUB_")},
    }
    names = [options.against, options.dialect] if options.against else [options.dialect]
    results: dict[str, list[Result]] = {name: [] for name in names}
    status = 1
    try:
        raise_file_limit(options.connections + options.publishers + 50)
        cores = None if options.no_pin else two_cores()
        if cores:
            os.sched_setaffinity(0, {cores[1]})
            if options.pid:
                pin(options.pid, cores[0])
        else:
            notice("nothing is pinned" + ("" if options.no_pin else ": there is only one core"))
        outcome["machine"] = {
            "python": platform.python_version(),
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "pinned": cores,
        }
        rows: dict[str, Result] = {}
        for number in range(options.repeat):
            for name in names:
                results[name].append(repeat(options, name, number, cores))
                rows[f"{name} {number + 1}" if options.against else f"{number + 1}"] = results[name][-1]
        middle = {name: medians(results[name]) for name in names}
        for name, median in middle.items():
            rows[f"{name} median" if options.against else "median"] = median
        outcome.update(ok=True, median=middle[options.dialect])
        ratio = None
        if options.against:
            ratio = ratios(middle[options.dialect], middle[options.against])
            outcome.update(
                ratio=ratio, against={"median": middle[options.against], "repeats": results[options.against]}
            )
        print(report(rows, ratio))
        status = 0
    except (BenchError, OSError) as error:
        print(f"fanout.py: no result: {error}", file=sys.stderr)
        outcome["error"] = str(error)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**outcome, "repeats": results[options.dialect]}, file, indent=2)
            file.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
