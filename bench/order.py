"""Order: many publish at once in several rooms, and everyone in a room must see one order.

    python bench/order.py --publishers 50 --rooms 10

Half of each room's subscribers, and half of the publishers of all rooms, speak plain, the others structured. Every
delivery of every subscriber is compared. See bench/README.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from typing import Any

from client import Client
from crowd import Crowd
from dialects import BenchError
from loadgen import clock, percentile
from options import DEADLINE, SERVER_URL, Parser, plan
from probe import endings
from report import FROM_OUTSIDE, Bench, Row, Watch, medians, no_collection, per, plot, run, show, tell_disturbed
from room import Room

COLUMNS = {
    "publications": ("publications", "{:,.0f}"),
    "deliveries": ("deliveries compared", "{:,.0f}"),
    "crossings": ("otherwise than sent", "{:.0%}"),
    "deliveries_per_second": ("deliveries/s", "{:,.0f}"),
    "cpu_us_per_delivery": ("CPU µs/delivery", "{:.2f}"),
    "p99_ms": ("p99 ms", "{:.2f}"),
}


def number_of_clients(options: argparse.Namespace) -> int:
    """How many there are."""
    return int(options.rooms * options.subscribers + options.publishers)


def one(bench: Bench, label: str) -> Row:
    """A fresh daemon; everyone publishes as fast as the others' deliveries allow, in rooms at random."""
    options = bench.options
    chance = random.Random(options.seed)
    with Crowd.gather(bench, label, number_of_clients(options), FROM_OUTSIDE, size=options.size) as crowd:
        rooms = [Room(bench.room(f"order-{i}")) for i in range(options.rooms)]
        members = [
            Client(crowd, f"subscriber {room.name} {i}", room, structured=i % 2 == 1)
            for room in rooms
            for i in range(options.subscribers)
        ]
        outside = [Client(crowd, f"publisher {i}", None, structured=True) for i in range(options.publishers)]
        crowd.open([*members, *outside])
        speakers = _speakers(members, outside, options.publishers)
        with no_collection():
            crowd.latencies = []
            watch = Watch(crowd.target)
            _shout(crowd, speakers, rooms, chance, options)
            crowd.drain()
            row = watch.stop()
            crowd.check()
        if bench.target is None and (ended := endings(crowd.target)):  # at --url there may be others, who may end
            raise BenchError(f"the server ended connections: {ended}")
        latencies = sorted(crowd.latencies)
        crossings = sum(room.order[i] > room.order[i + 1] for room in rooms for i in range(len(room.order) - 1))
        return row | {
            "publications": crowd.published,
            "deliveries": crowd.received,
            "crossings": crossings / crowd.published,
            "deliveries_per_second": crowd.received / (row["seconds"] or 1),
            "cpu_us_per_delivery": per(row["cpu_us"], crowd.received),
            "p99_ms": percentile(latencies, 0.99),
        }


def _speakers(members: Sequence[Client], outside: Sequence[Client], number: int) -> list[tuple[Client, Room | None]]:
    """Who publishes: structured ones from outside in any room (None), and as many plain ones in their own."""
    plain = [client for client in members if not client.structured]
    inside: list[tuple[Client, Room | None]] = [
        (client, client.room) for client in plain[:: max(1, len(plain) // number)]
    ]
    return [*inside[:number], *((client, None) for client in outside)]


def _shout(
    crowd: Crowd,
    speakers: Sequence[tuple[Client, Room | None]],
    rooms: Sequence[Room],
    chance: random.Random,
    options: argparse.Namespace,
) -> None:
    """All speak, so often that a certain number of deliveries is under way, and never in the same order."""
    began, turn = clock(), list(speakers)
    while (share := (clock() - began) / 1e9 / options.seconds) < 1:
        chance.shuffle(turn)
        for client, own in turn:
            while crowd.due - crowd.received > options.under_way:
                crowd.poll("shouting", share)
            crowd.publish(client, own or chance.choice(rooms))
        crowd.poll("shouting", share)


def measure(bench: Bench) -> None:
    """As often as asked for; one fault in one order, and there is no result."""
    options = bench.options
    bench.needs(number_of_clients(options), 'allow_publish = "anonymous"')
    rows = [one(bench, f"{i + 1}/{options.repeat}") for i in range(options.repeat)]
    median = medians(rows)
    bench.outcome.update(repeats=rows, median=median)
    named = [*((f"{i}", row) for i, row in enumerate(rows, 1)), ("median", median)]
    show("repeat", named, COLUMNS)
    tell_disturbed(rows)
    print(f"{options.rooms} rooms, one order in each: the same for all its {options.subscribers} subscribers")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.bar([name for name, _ in named], [row["crossings"] for _, row in named])
        axes.set(ylabel="share delivered in another order than sent", ylim=(0, 1))

    plot(options.plot, "One order a room, whatever the order of sending", draw)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    parser = Parser("order.py", "Have many publish at once, and compare what everyone saw.")
    parser.common(SERVER_URL, deadline=DEADLINE)
    parser.whole("--rooms", 10, "rooms")
    parser.whole("--subscribers", 20, "of each", least=2)
    parser.whole("--publishers", 50, "from outside, and as many from inside")
    parser.size()
    parser.real("--seconds", 15, "to publish")
    parser.whole("--under-way", 2000, "deliveries under way at most")
    parser.whole("--seed", 1, "of who publishes where", least=0)
    parser.repeat(2)
    options = parser.checked(arguments)
    plan(options, options.seconds, number_of_clients(options))
    return run("order.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
