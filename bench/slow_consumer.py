"""Slow consumers: what those who don't read cost those who do.

    python bench/slow_consumer.py --connections 1000 --stalled 100

Rounds with and without stalled readers take turns; the readers' deliveries are checked in both. See bench/README.md.
"""

from __future__ import annotations

import contextlib
import gc
import socket
import sys
import time
from array import array
from collections.abc import Sequence
from typing import Any

from crowd import endings
from dialects import DIALECTS, BenchError
from fanout import LATE_MS_MAX, at_rate
from loadgen import Collector, Target, clock, close_all, connect_all, notice, percentile, resident_kb, table
from report import Bench, Row, Watch, cells, checked, count, medians, parser, plot, run, seconds, tell_disturbed

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


def one(bench: Bench, label: str, stalled: int) -> Row:
    """A fresh daemon, its readers, and perhaps some who join and never read."""
    options, deadline = bench.options, bench.deadline()
    dialect = DIALECTS["plain"](options.size)
    readers = options.connections - options.stalled
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(bench.progress(label))
        settings = {"HUBBUB_OUTBOXES_BYTES_MAX": str(OUTBOXES_BYTES_MAX)}
        target = stack.enter_context(bench.daemon(options.connections, settings))
        sockets = connect_all(target, readers, deadline, progress, dialect.join)
        stack.callback(close_all, sockets)
        collector = stack.enter_context(Watching(sockets, [], dialect, deadline, progress))
        collector.settle()
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
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
        ended = evictions(target, stalled, before)
        memory = resident_kb(target.pid or 0) / 1024
    if late > LATE_MS_MAX:
        notice(f"publications were sent up to {late:.1f} ms late (p99)")
    if max(collector.looks) - collector.looks[0] > OUTBOXES_BYTES_MAX / 2**20 + SLACK_MB:
        raise BenchError(f"{max(collector.looks):.0f} MB, though outboxes_bytes_max bounds what waits for the stalled")
    return row | {
        "p50_ms": percentile(finished.latencies_ms, 0.5),
        "p99_ms": percentile(finished.latencies_ms, 0.99),
        "cpu_us_per_delivery": (row["cpu_us"] or 0) / finished.deliveries,
        "memory_before_mb": collector.looks[0],
        "memory_peak_mb": max(collector.looks),
        "memory_after_mb": memory,
        "evicted": sum(ended.values()),
        **{f"ended_{reason}": number for reason, number in ended.items()},
        "late_p99_ms": late,
        "disturbed": row["disturbed"] or late > LATE_MS_MAX,
    }


def _shrink(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def evictions(target: Target, stalled: int, before: dict[str, int]) -> dict[str, int]:
    """Who was ended and why: all the stalled, in time, and nobody else."""
    until = time.monotonic() + (EVICTION_SECONDS if stalled else 0)
    while True:
        ended = endings(target, before)
        if sum(ended.values()) >= stalled or time.monotonic() > until:
            break
        time.sleep(0.5)
    if set(ended) - set(OURS) or sum(ended.values()) != stalled:
        raise BenchError(f"{stalled} stalled readers should have been ended and nobody else, but ended were {ended}")
    return ended


def measure(bench: Bench) -> None:
    """Rounds in turn, and how many times worse it was with the stalled ones."""
    options = bench.options
    rows: dict[str, list[Row]] = {"without": [], "with": []}
    for i in range(options.repeat):
        for name, found in rows.items():
            found.append(one(bench, f"{i + 1}/{options.repeat} {name}", options.stalled if name == "with" else 0))
    middle = {name: medians(found) for name, found in rows.items()}
    quotients: Row = {"disturbed": any(row["disturbed"] for row in middle.values())}
    for column in ("p50_ms", "p99_ms", "cpu_us_per_delivery"):
        quotients[column] = (middle["with"][column] or 0) / (middle["without"][column] or 1)
    bench.outcome.update(repeats=rows, median=middle, ratio=quotients)
    lines = [cells(f"{name} {options.stalled} stalled", row, COLUMNS) for name, row in middle.items()]
    lines.append(cells("ratio", quotients, {name: (title, "{:.2f}") for name, (title, _) in COLUMNS.items()}))
    print(table([f"{options.connections - options.stalled} readers", *(title for title, _ in COLUMNS.values())], lines))
    tell_disturbed(middle.values())

    def draw(figure: Any) -> None:
        for axes, columns in zip(figure.subplots(1, 2), (("p50_ms", "p99_ms"), ("memory_peak_mb",)), strict=True):
            for shift, name in enumerate(rows):
                at = [place + 0.4 * shift for place in range(len(columns))]
                axes.bar(at, [middle[name][column] for column in columns], 0.4, label=name)
            axes.set_xticks([place + 0.2 for place in range(len(columns))], [COLUMNS[column][0] for column in columns])
            axes.legend()

    plot(options.plot, f"{options.stalled} stalled readers of {options.connections}: what the others notice", draw)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    made = parser("slow_consumer.py", "Measure what those who don't read cost those who do.")
    add = made.add_argument
    add("--connections", type=count, default=1000, metavar="N", help="with the stalled ones (1000)")
    add("--stalled", type=count, default=100, metavar="K", help="of these, how many never read (100)")
    add("--publishers", type=count, default=10, metavar="N", help="how many of the readers publish in turn (10)")
    add("--rate", type=seconds, default=18_000, metavar="N", help="deliveries to readers a second (18000)")
    add("--size", type=count, default=16_000, metavar="BYTES", help="of a message (16000)")
    add("--seconds", type=seconds, default=15, help="to measure (15)")
    add("--warmup", type=seconds, default=1, metavar="SECONDS", help="before it (1)")
    add("--repeat", type=count, default=2, metavar="N", help="times, each with a fresh daemon (2)")
    options = checked(made, arguments)
    if options.stalled + options.publishers > options.connections:
        made.error("argument --stalled: leaves fewer readers than --publishers")
    readers = options.connections - options.stalled
    options.rate *= options.connections / readers  # at_rate counts a publication as --connections deliveries
    return run("slow_consumer.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
