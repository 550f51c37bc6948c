"""Inbound: what it costs the server to receive a message that hardly anybody is sent.

    python bench/inbound.py --sizes 100,16000

Publishers are alone: in plain each in a room of its own, where it gets its own message back, one delivery a message; in
the structured dialect in no room at all, where a message is answered by a reply. See bench/README.md.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

from client import Client
from crowd import Crowd
from dialects import STAMP_SIZE
from loadgen import clock
from options import DEADLINE, SERVER_URL, Parser, plan
from report import FROM_OUTSIDE, Bench, Row, Watch, no_collection, per, plot, run, show, tell_disturbed
from room import Room

COLUMNS = {
    "cpu_us_per_message": ("CPU µs/message", "{:.2f}"),
    "messages_per_second": ("messages/s", "{:,.0f}"),
    "cpu_share": ("CPU", "{:.0%}"),
}
DIALECTS = ("plain", "structured")
Case = tuple[str, int, int]  # dialect, size, burst


def one(bench: Bench, label: str, case: Case) -> Row:
    """A fresh daemon, and publishers that each have so many messages in flight until the time is up."""
    options, (dialect, size, burst) = bench.options, case
    # What is received is what is measured: message_bytes_max must let the largest through, with its command.
    settings = {"HUBBUB_MESSAGE_BYTES_MAX": str(max(65_536, 2 * size))}
    structured = dialect == "structured"
    settings |= FROM_OUTSIDE if structured else {}
    with Crowd.gather(bench, label, options.publishers, settings, size=size) as crowd:
        rooms = [Room(bench.room(f"own-{i}")) for i in range(options.publishers)]
        pairs = [
            (Client(crowd, f"publisher {i}", None if structured else room, structured=structured), room)
            for i, room in enumerate(rooms)
        ]
        crowd.open([client for client, _ in pairs])
        with no_collection():
            _publish(crowd, pairs, options.warmup, burst, "warm-up")
            watch, before = Watch(crowd.target), crowd.published
            _publish(crowd, pairs, options.seconds, burst, label)
            row = watch.stop()
            crowd.check()
        messages = crowd.published - before
    return row | {
        "messages": messages,
        "cpu_us_per_message": per(row["cpu_us"], messages),
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
    size_max = int(max(options.sizes))
    bench.needs(options.publishers, f"message_bytes_max {2 * size_max:,} or more", 'allow_publish = "anonymous"')
    cases = [(d, int(size), int(b)) for d in DIALECTS for size in options.sizes for b in options.bursts]
    names = {(d, size, burst): f"{d}, {size:,} B, {burst} at once" for d, size, burst in cases}
    results, middle = bench.repeated(names, one)
    bench.outcome["results"] = [
        {"dialect": dialect, "size": size, "burst": burst, "median": middle[dialect, size, burst], "repeats": rows}
        for (dialect, size, burst), rows in results.items()
    ]
    show("message", [(names[case], row) for case, row in middle.items()], COLUMNS)
    tell_disturbed(middle.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        labels = [name.replace(", ", "\n") for name in names.values()]
        axes.bar(labels, [row["cpu_us_per_message"] or 0 for row in middle.values()])
        axes.set(ylabel="server CPU, µs a message")

    plot(options.plot, "What receiving a message costs", draw)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    parser = Parser("inbound.py", "Measure what receiving a message costs.")
    parser.common(SERVER_URL, deadline=DEADLINE)
    parser.whole("--publishers", 50, "connections that publish, each alone")
    parser.listed("--sizes", int, [100, 16_000], "of messages", least=STAMP_SIZE, metavar="BYTES,…")
    parser.listed("--bursts", int, [1, 16], "messages in one send", least=1, metavar="N,…")
    parser.times(2, 0.5, 2, "each")
    options = parser.checked(arguments)
    plan(options, options.warmup + options.seconds, options.publishers)
    return run("inbound.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
