"""Latency: how long a delivery takes, at several loads.

    python bench/latency.py --connections 100 --rates 1000,10000,50000 --plot latency.svg

An open loop: publications are due at times fixed beforehand, and latency counts from those times, so a stall counts
for everyone who had to wait for it. See bench/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from dialects import DIALECTS
from fanout import LATE_MS_MAX, at_rate
from loadgen import Collector, close_all, connect_all, notice, percentile
from options import DEADLINE, ROOM_URL, Parser, plan
from report import FROM_OUTSIDE, Bench, Row, Watch, medians, no_collection, plot, run, show, tell_disturbed

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
    rows = []
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(bench.progress(label))
        settings = FROM_OUTSIDE if apart else {}
        target = stack.enter_context(bench.daemon(options.connections + apart, settings, path=dialect.path))
        sockets = connect_all(target, options.connections, deadline, progress, dialect.join)
        stack.callback(close_all, sockets)
        publishers = connect_all(target, apart, deadline, progress, dialect.introduce)
        stack.callback(close_all, publishers)
        collector = stack.enter_context(Collector(sockets, publishers, dialect, deadline, progress))
        collector.settle()
        stack.enter_context(no_collection())
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
    show("asked for", [(f"{row['rate']:,.0f}", row) for row in middle], COLUMNS)
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
    parser = Parser("latency.py", "Measure how long deliveries take, at several loads.")
    parser.common(ROOM_URL, deadline=DEADLINE)
    parser.dialect_room()
    rates = [1000.0, 5000.0, 20000.0, 40000.0, 60000.0]
    parser.listed("--rates", float, rates, "deliveries a second, one after the other", least=1, metavar="N,N,…")
    parser.times(5, 1, 2, "at each rate", least=0)
    options = parser.checked(arguments)
    parser.check_dialects(options, [options.dialect])
    # Twice, as a server that can't keep up with a rate delivers the rest afterwards.
    plan(options, len(options.rates) * (options.warmup + 2 * options.seconds), options.connections)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    return run("latency.py", parse_options(arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
