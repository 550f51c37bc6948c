"""Fan-out: what one room costs the daemon when everything published goes to everyone in it.

    python bench/fanout.py --connections 1000 --mode rate

See bench/README.md for the method and for how to read the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from dialects import DIALECTS
from loadgen import (
    Collector,
    CpuTime,
    Progress,
    Run,
    Target,
    close_all,
    connect_all,
    cpu_time,
    notice,
    percentile,
    resident_kb,
)
from options import ROOM_URL, Parser
from report import (
    FROM_OUTSIDE,
    WAITED_SHARE_MAX,
    Bench,
    Row,
    draw_repeats,
    medians,
    no_collection,
    plot,
    ratio,
    run,
    show,
    tell_disturbed,
)

LATE_MS_MAX = 1.0  # beyond it a repeat is marked as disturbed

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
    bench: Bench,
    name: str,
    number: int,
    *,
    publish: Callable[[Collector, argparse.Namespace, float], list[float]] | None = None,
    collect: type[Collector] = Collector,
    progress: Progress | None = None,
    tell: Tell = notice,
) -> Row:
    """One repeat: a fresh daemon (or that at --url) and connections, the warm-up, the measurement.

    Other benchmarks `publish` otherwise than by --mode, `collect` otherwise, and `tell` elsewhere what disturbed.
    """
    options, deadline = bench.options, bench.deadline()
    progress = progress or Progress(f"{name} {number + 1}/{options.repeat} ")
    dialect = DIALECTS[name](options.size)
    apart = options.publishers if dialect.publishers_apart else 0
    with contextlib.ExitStack() as stack:
        stack.callback(progress.clear)
        settings = FROM_OUTSIDE if apart else {}
        target = stack.enter_context(bench.daemon(options.connections + apart, settings, path=dialect.path))
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
        stack.enter_context(no_collection())
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
        done = collector.finish()
    memory_told = memory / len(sockets) if bench.tells_memory else None
    return {**_result(options, done, late, before, after, tell), "memory_kb_per_connection": memory_told}


def _result(options: argparse.Namespace, run: Run, late: list[float], before: Times, after: Times, tell: Tell) -> Row:
    """The figures of a run; `late` in ms."""
    seconds = max(run.seconds, options.seconds) if options.mode == "rate" else run.seconds
    used = (after[0].used - before[0].used) / 1e9
    waited = [end.disturbed_since(start) / 1e9 / seconds for start, end in zip(before, after, strict=True)]
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
        "server_waited_share": waited[0] if after[0].used else None,
        "generator_waited_share": waited[1],
        "disturbed": max(waited) > WAITED_SHARE_MAX or (late_p99 or 0) > LATE_MS_MAX,
    }


def _cpu_times(target: Target) -> Times:
    """Of the daemon (nothing if unknown) and of this process."""
    return cpu_time(target.pid) if target.pid else CpuTime(), cpu_time(os.getpid())


def measure(bench: Bench) -> None:
    """All repeats, of two dialects in turn if they are to be compared."""
    options = bench.options
    names = [options.against, options.dialect] if options.against else [options.dialect]
    results: dict[str, list[Row]] = {name: [] for name in names}
    bench.outcome["repeats"] = results[options.dialect]  # those before a failure are told, too
    rows: list[tuple[str, Row]] = []
    for number in range(options.repeat):
        for name in names:
            results[name].append(repeat(bench, name, number))
            rows.append((f"{name} {number + 1}" if options.against else f"{number + 1}", results[name][-1]))
    middle = {name: medians(found) for name, found in results.items()}
    rows += [(f"{name} median" if options.against else "median", median) for name, median in middle.items()]
    bench.outcome["median"] = middle[options.dialect]
    quotients = None
    if options.against:
        quotients = ratio(middle[options.dialect], middle[options.against], COLUMNS)
        against = {"median": middle[options.against], "repeats": results[options.against]}
        bench.outcome.update(ratio=quotients, against=against)
    show("repeat", rows, COLUMNS, quotients)
    tell_disturbed(row for _, row in rows)

    def draw(figure: Any) -> None:
        draw_repeats(figure, results, COLUMNS, ("cpu_us_per_delivery", "deliveries_per_second", "latency_p50_ms"))

    plot(options.plot, f"{options.connections} connections in one room, mode {options.mode}", draw, (10, 3))


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; wrong ones end the program with status 2."""
    parser = Parser("fanout.py", "Measure what one room costs the daemon.")
    parser.common(ROOM_URL, deadline="for a repeat (30 more than it should take)")
    parser.dialect_room()
    parser.add_argument(
        "--against", choices=DIALECTS, metavar="DIALECT", help="measure that, too, in turn, and tell the ratio"
    )
    parser.add_argument("--mode", choices=MODES, default="rate", help="when to publish (rate)")
    parser.real("--rate", 20000, "deliveries a second, in mode rate", metavar="N")
    parser.whole("--burst", 64, "publications in one send, in mode burst")
    parser.times(5, 1, 3, least=0)
    options = parser.checked(arguments)
    if options.against == options.dialect:
        parser.error("argument --against: the same as --dialect")
    if options.against and options.target:
        parser.error("argument --against: not with --url, whose path belongs to one dialect")
    parser.check_dialects(options, [name for name in (options.dialect, options.against) if name])
    options.deadline = options.deadline or options.warmup + options.seconds + options.connections / 100 + 30
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    return run("fanout.py", parse_options(arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
