"""Inbound: what it costs the server to receive a message that hardly anybody is sent.

    python bench/inbound.py --sizes 100,16000

Publishers are alone: in plain each in a room of its own, where it gets its own message back, one delivery a message; in
the structured dialect in no room at all, where a message is answered by a reply. See bench/README.md.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from client import Client
from crowd import Crowd
from dialects import STAMP_SIZE
from loadgen import clock, table
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
from room import Room

COLUMNS = {
    "cpu_us_per_message": ("CPU µs/message", "{:.2f}"),
    "messages_per_second": ("messages/s", "{:,.0f}"),
    "cpu_share": ("CPU", "{:.0%}"),
}
DIALECTS = ("plain", "structured")


def one(bench: Bench, label: str, dialect: str, size: int, burst: int) -> Row:
    """A fresh daemon, and publishers that each have so many messages in flight until the time is up."""
    options = bench.options
    # What is received is what is measured: message_bytes_max must let the largest through, with its command.
    settings = {"HUBBUB_MESSAGE_BYTES_MAX": str(max(65_536, 2 * size))}
    with (
        bench.daemon(options.publishers, settings) as target,
        bench.progress(label) as progress,
        Crowd(target, bench.deadline(), progress, size) as crowd,
    ):
        structured = dialect == "structured"
        rooms = [Room(f"own-{i}") for i in range(options.publishers)]
        pairs = [
            (Client(crowd, f"publisher {i}", None if structured else room, structured=structured), room)
            for i, room in enumerate(rooms)
        ]
        crowd.open([client for client, _ in pairs])
        gc.collect()
        gc.disable()
        try:
            _publish(crowd, pairs, options.warmup, burst, "warm-up")
            watch, before = Watch(target), crowd.published
            _publish(crowd, pairs, options.seconds, burst, label)
            row = watch.stop()
            crowd.check()
        finally:
            gc.enable()
        messages = crowd.published - before
    return row | {
        "messages": messages,
        "cpu_us_per_message": (row["cpu_us"] or 0) / messages,
        "messages_per_second": messages / (row["seconds"] or 1),
    }


def _publish(crowd: Crowd, pairs: Sequence[tuple[Client, Room]], duration: float, burst: int, label: str) -> None:
    """In turn; each publishes its next burst when its last has come back: a closed loop of many."""
    began = clock()
    for client, room in itertools.cycle(pairs):
        if client is pairs[0][0]:
            crowd.drain()  # of the round before; those in one round are in flight together
            if (share := (clock() - began) / 1e9 / duration) >= 1:
                return
            crowd.poll(label, share)
        crowd.publish(client, room, count=burst)


def measure(bench: Bench) -> None:
    """Every dialect, size and burst in turn, and that as often as asked for."""
    options = bench.options
    cases = [(d, int(size), int(b)) for d in DIALECTS for size in options.sizes for b in options.bursts]
    results: dict[tuple[str, int, int], list[Row]] = {case: [] for case in cases}
    for i in range(options.repeat):
        for case in cases:
            dialect, size, burst = case
            label = f"{i + 1}/{options.repeat} {dialect} {size} B × {burst}"
            results[case].append(one(bench, label, dialect, size, burst))
    middle = {case: medians(rows) for case, rows in results.items()}
    bench.outcome["results"] = [
        {"dialect": dialect, "size": size, "burst": burst, "median": middle[dialect, size, burst], "repeats": rows}
        for (dialect, size, burst), rows in results.items()
    ]
    lines = [cells(f"{d}, {size:,} B, {burst} at once", row, COLUMNS) for (d, size, burst), row in middle.items()]
    print(table(["message", *(title for title, _ in COLUMNS.values())], lines))
    tell_disturbed(middle.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        names = [f"{d}\n{size:,} B\n{burst} at once" for d, size, burst in middle]
        axes.bar(names, [row["cpu_us_per_message"] for row in middle.values()])
        axes.set(ylabel="server CPU, µs a message")

    plot(options.plot, "What receiving a message costs", draw)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; wrong ones end the program with status 2."""
    made = parser("inbound.py", "Measure what receiving a message costs.")
    add = made.add_argument
    add("--publishers", type=count, default=50, metavar="N", help="connections that publish, each alone (50)")
    add(
        "--sizes",
        type=listed(number(int, STAMP_SIZE, f"whole numbers from {STAMP_SIZE}")),
        default=[100, 16_000],
        metavar="BYTES,…",
        help="of messages (100,16000)",
    )
    add(
        "--bursts",
        type=listed(number(int, 1, "whole numbers from 1")),
        default=[1, 16],
        metavar="N,…",
        help="messages in one send (1,16)",
    )
    add("--seconds", type=seconds, default=2, help="to measure each (2)")
    add("--warmup", type=seconds, default=0.5, metavar="SECONDS", help="before it (0.5)")
    add("--repeat", type=count, default=2, metavar="N", help="times, each with a fresh daemon (2)")
    return checked(made, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    return run("inbound.py", parse_options(arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
