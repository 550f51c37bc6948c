"""Latency: how long a delivery takes, at several loads.

    python bench/latency.py --connections 100 --rates 1000,10000,50000 --plot latency.svg

An open loop: publications are due at times fixed beforehand, and latency counts from those times, so a stall counts
for everyone who had to wait for it. See bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
from collections.abc import Sequence
from typing import Any

from dialects import DIALECTS
from fanout import LATE_MS_MAX, at_rate
from loadgen import Collector, close_all, connect_all, notice, percentile, table
from report import (
    Bench,
    Row,
    Watch,
    cells,
    checked,
    count,
    listed,
    medians,
    number,
    parser,
    plot,
    run,
    seconds,
    tell_disturbed,
)

COLUMNS = {
    "deliveries_per_second": ("deliveries/s", "{:,.0f}"),
    "cpu_share": ("CPU", "{:.0%}"),
    "p50_ms": ("p50 ms", "{:.3f}"),
    "p90_ms": ("p90 ms", "{:.3f}"),
    "p99_ms": ("p99 ms", "{:.3f}"),
    "p99_9_ms": ("p99.9 ms", "{:.3f}"),
    "worst_ms": ("worst ms", "{:.3f}"),
}
SHARES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p99_9_ms": 0.999, "worst_ms": 1.0}


def at_rates(bench: Bench, label: str, rates: Sequence[float]) -> list[Row]:
    """One round: a fresh server (or the one at --url), the same connections, one rate after the other."""
    options, deadline = bench.options, bench.deadline()
    dialect = DIALECTS[options.dialect](options.size)
    apart = options.publishers if dialect.publishers_apart else 0
    settings: dict[str, str] = {}
    rows = []
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(bench.progress(label))
        target = stack.enter_context(bench.daemon(options.connections + apart, settings))
        if not options.target:
            target = type(target)(target.host, target.port, dialect.path, target.pid)
        sockets = connect_all(target, options.connections, deadline, progress, dialect.join)
        stack.callback(close_all, sockets)
        publishers = connect_all(target, apart, deadline, progress, dialect.introduce)
        stack.callback(close_all, publishers)
        collector = stack.enter_context(Collector(sockets, publishers, dialect, deadline, progress))
        collector.settle()
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        for rate in rates:
            load = argparse.Namespace(**{**vars(options), "rate": rate})
            if options.warmup:
                collector.begin("warm-up", options.warmup)
                at_rate(collector, load, options.warmup)
                collector.settle()
                collector.finish()
            collector.begin(f"{rate:,.0f}/s", options.seconds)
            watch = Watch(target)
            late = at_rate(collector, load, options.seconds)
            row = watch.stop()
            collector.settle()
            finished = collector.finish()
            late_p99 = percentile(sorted(late), 0.99)
            if late_p99 > LATE_MS_MAX:
                notice(f"at {rate:,.0f}/s, publications were sent up to {late_p99:.1f} ms late (p99)")
                row["disturbed"] = True
            rows.append(
                row
                | {
                    "rate": rate,
                    "deliveries": finished.deliveries,
                    "deliveries_per_second": finished.deliveries / max(finished.seconds, options.seconds),
                    "late_p99_ms": late_p99,
                    **{name: percentile(finished.latencies_ms, share) for name, share in SHARES.items()},
                }
            )
    return rows


def measure(bench: Bench) -> None:
    """All rounds; the table has the medians of the rounds, rate by rate."""
    options = bench.options
    rounds = [at_rates(bench, f"{i + 1}/{options.repeat}", options.rates) for i in range(options.repeat)]
    middle = [medians(rows) for rows in zip(*rounds, strict=True)]
    bench.outcome.update(rounds=rounds, median=middle)
    lines = [cells(f"{row['rate']:,.0f}", row, COLUMNS) for row in middle]
    print(table(["asked for", *(title for title, _ in COLUMNS.values())], lines))
    tell_disturbed(middle)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name in ("p99_9_ms", "p99_ms", "p90_ms", "p50_ms"):
            points = [(row["deliveries_per_second"], row[name]) for row in middle]
            axes.plot(*zip(*points, strict=True), marker="o", label=COLUMNS[name][0].removesuffix(" ms"))
        axes.set(xlabel="deliveries a second", ylabel="latency, ms", xscale="log", yscale="log")
        axes.legend()
        axes.grid(visible=True, which="both", alpha=0.3)

    title = f"{options.dialect}, {options.connections} connections in one room, {options.size} bytes"
    plot(options.plot, title, draw)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; wrong ones end the program with status 2."""
    made = parser("latency.py", "Measure how long deliveries take, at several loads.", url=True)
    add = made.add_argument
    add("--dialect", choices=DIALECTS, default="plain", help="what is spoken in the room (plain)")
    add("--connections", type=count, default=100, metavar="N", help="subscribers in the room (100)")
    add("--publishers", type=count, metavar="N", help="how many publish in turn (10, or all if fewer)")
    add(
        "--rates",
        type=listed(number(float, 1, "numbers from 1")),
        default=[1000.0, 5000.0, 20000.0, 40000.0, 60000.0],
        metavar="N,N,…",
        help="deliveries a second, one after the other (1000,5000,20000,40000,60000)",
    )
    add("--size", type=count, metavar="BYTES", help="of a delivery's payload (100; centrifugo: 200)")
    add("--seconds", type=seconds, default=5, help="to measure at each rate (5)")
    add("--warmup", type=number(float, 0, "a number from 0"), default=1, metavar="SECONDS", help="before each (1)")
    add("--repeat", type=count, default=2, metavar="N", help="rounds, each with a fresh daemon (2)")
    options = checked(made, arguments)
    options.size = options.size or DIALECTS[options.dialect].size_default
    least = DIALECTS[options.dialect].size_min
    if options.size < least:
        made.error(f"argument --size: a whole number from {least} expected, not '{options.size}'")
    options.publishers = options.publishers or min(10, options.connections)
    if options.publishers > options.connections and not DIALECTS[options.dialect].publishers_apart:
        made.error("argument --publishers: more than --connections")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    return run("latency.py", parse_options(arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
