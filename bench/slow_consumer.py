"""Slow consumers: what those who don't read cost those who do.

    python bench/slow_consumer.py --connections 1000 --stalled 100

Rounds with and without stalled readers take turns; the readers' deliveries are checked in both. See bench/README.md.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dialects import DIALECTS, STAMP_SIZE, BenchError
from fanout import LATE_MS_MAX, at_rate
from loadgen import Collector, Target, clock, close_all, connect_all, notice, percentile, resident_kb
from options import DEADLINE, SERVER_URL, Parser, plan
from probe import endings
from report import Bench, Row, Watch, no_collection, per, plot, ratio, run, show, tell_disturbed

COLUMNS = {
    "p50_ms": ("p50 ms", "{:.3f}"),
    "p99_ms": ("p99 ms", "{:.3f}"),
    "cpu_us_per_delivery": ("CPU µs/delivery", "{:.2f}"),
    "memory_before_mb": ("MB before", "{:,.0f}"),
    "memory_peak_mb": ("MB at most", "{:,.0f}"),
    "memory_after_mb": ("MB after", "{:,.0f}"),
    "evicted": ("evicted", "{:.0f}"),
}
OURS = ("slow_consumer", "write_stall")  # the reasons for which a stalled reader may be ended
RECEIVE_BUFFER = 4096  # of a stalled reader, in bytes: the less the kernel takes, the sooner the server must hold it
OUTBOXES_BYTES_MAX = 268_435_456  # hubbub's default for what all outboxes may hold, set here to be sure
SLACK_MB = 64  # beyond what waits: each piece has its own weight, and the allocator has its own
EVICTION_SECONDS = 15  # write_stall_seconds_max is 10 by default


class Watching(Collector):
    """A collector that looks at the server's memory while it polls."""

    target: Target | None = None
    next_look = 0

    def watch(self, target: Target) -> None:
        """Look at it from now on, twice a second."""
        self.target, self.looks = target, array("d")

    def collect(self) -> None:
        """One pass of the loop."""
        super().collect()
        if self.target and self.target.pid and (now := clock()) > self.next_look:
            self.next_look = now + 500_000_000
            self.looks.append(resident_kb(self.target.pid) / 1024)


def one(bench: Bench, label: str, case: str) -> Row:
    """A fresh daemon, its readers, and perhaps some who join and never read."""
    options, deadline = bench.options, bench.deadline()
    dialect = DIALECTS["plain"](options.size)
    readers, stalled = options.connections - options.stalled, options.stalled if case == "with" else 0
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(bench.progress(label))
        settings = {"HUBBUB_OUTBOXES_BYTES_MAX": str(OUTBOXES_BYTES_MAX)}
        target = stack.enter_context(bench.hubbub(options.connections, settings))
        target = replace(target, path=f"/chat/{bench.room('bench')}")
        sockets = connect_all(target, readers, deadline, progress, dialect.join)
        stack.callback(close_all, sockets)
        collector = stack.enter_context(Watching(sockets, [], dialect, deadline, progress))
        collector.settle()
        stack.enter_context(no_collection())
        collector.begin("warm-up", options.warmup)
        at_rate(collector, options, options.warmup)
        collector.settle()
        collector.finish()
        stack.callback(close_all, connect_all(target, stalled, deadline, progress, _shrink))
        before = endings(target)
        collector.begin(label, options.seconds)
        collector.watch(target)
        watch = Watch(target)
        late = percentile(sorted(at_rate(collector, options, options.seconds)), 0.99)
        row = watch.stop()
        collector.settle()
        finished = collector.finish()
        ended = evictions(target, stalled, before, alone=bench.target is None)
        memory = resident_kb(target.pid) / 1024 if target.pid else None
    if late > LATE_MS_MAX:
        notice(f"publications were sent up to {late:.1f} ms late (p99)")
    looks = [*collector.looks, memory] if memory else None  # none of a server whose process isn't known
    if looks and max(looks) - looks[0] > OUTBOXES_BYTES_MAX / 2**20 + SLACK_MB:
        raise BenchError(f"{max(looks):.0f} MB, though outboxes_bytes_max bounds what waits for the stalled")
    return row | {
        "p50_ms": percentile(finished.latencies_ms, 0.5),
        "p99_ms": percentile(finished.latencies_ms, 0.99),
        "cpu_us_per_delivery": per(row["cpu_us"], finished.deliveries),
        "memory_before_mb": looks[0] if looks else None,
        "memory_peak_mb": max(looks) if looks else None,
        "memory_after_mb": memory,
        "evicted": sum(ended.values()),
        **{f"ended_{reason}": number for reason, number in ended.items()},
        "late_p99_ms": late,
        "disturbed": row["disturbed"] or late > LATE_MS_MAX,
    }


def _shrink(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def evictions(target: Target, stalled: int, before: dict[str, int], alone: bool) -> dict[str, int]:
    """Who was ended and why: all the stalled, in time, and nobody else; if not alone, others may come and go."""
    until = time.monotonic() + (EVICTION_SECONDS if stalled else 0)
    while True:
        ended = {reason: n for reason, n in endings(target, before).items() if alone or reason in OURS}
        if sum(ended.values()) >= stalled or time.monotonic() > until:
            break
        time.sleep(0.5)
    if set(ended) - set(OURS) or sum(ended.values()) != stalled:
        raise BenchError(f"{stalled} stalled readers should have been ended and nobody else, but ended were {ended}")
    return ended


def measure(bench: Bench) -> None:
    """Rounds in turn, and how many times worse it was with the stalled ones."""
    options = bench.options
    bench.needs(options.connections, "no pings due", "outboxes_bytes_max and write_stall_seconds_max as by default")
    rows, middle = bench.repeated({name: name for name in ("without", "with")}, one)
    quotients = ratio(middle["with"], middle["without"], ("p50_ms", "p99_ms", "cpu_us_per_delivery"))
    bench.outcome.update(repeats=rows, median=middle, ratio=quotients)
    named = [(f"{name} {options.stalled} stalled", row) for name, row in middle.items()]
    show(f"{options.connections - options.stalled} readers", named, COLUMNS, quotients)
    tell_disturbed(middle.values())

    def draw(figure: Any) -> None:
        for axes, columns in zip(figure.subplots(1, 2), (("p50_ms", "p99_ms"), ("memory_peak_mb",)), strict=True):
            for shift, name in enumerate(rows):
                at = [place + 0.4 * shift for place in range(len(columns))]
                axes.bar(at, [middle[name][column] or 0 for column in columns], 0.4, label=name)
            axes.set_xticks([place + 0.2 for place in range(len(columns))], [COLUMNS[column][0] for column in columns])
            axes.legend()

    plot(options.plot, f"{options.stalled} stalled readers of {options.connections}: what the others notice", draw)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    parser = Parser("slow_consumer.py", "Measure what those who don't read cost those who do.")
    parser.common(SERVER_URL, deadline=DEADLINE)
    parser.whole("--connections", 1000, "with the stalled ones")
    parser.whole("--stalled", 100, "of these, how many never read", metavar="K")
    parser.whole("--publishers", 10, "how many of the readers publish in turn")
    parser.real("--rate", 18_000, "deliveries to readers a second", metavar="N")
    parser.whole("--size", 16_000, "of a message", least=STAMP_SIZE, metavar="BYTES")
    parser.times(15, 1, 2)
    options = parser.checked(arguments)
    if options.stalled + options.publishers > options.connections:
        parser.error("argument --stalled: leaves fewer readers than --publishers")
    readers = options.connections - options.stalled
    options.rate *= options.connections / readers  # at_rate counts a publication as --connections deliveries
    plan(options, options.warmup + 2 * options.seconds + EVICTION_SECONDS, options.connections)  # 2: see latency.py
    return run("slow_consumer.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
