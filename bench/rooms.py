"""Rooms: what a delivery costs by the number of rooms among which the same connections are divided, and by history.

    python bench/rooms.py --connections 1000 --rooms 1,100,1000 --history 0,100,10000

Each turn, one member of each room publishes, and the next turn begins when everyone has everything. So each turn is as
many deliveries, whatever the number of rooms; what differs is for how many of them a publication is. See
bench/README.md.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any

from client import Client
from crowd import Crowd, metrics
from dialects import STAMP_SIZE, BenchError
from loadgen import Target, clock, table
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
    "members": ("members", "{:,.0f}"),
    "history": ("kept", "{:,.0f}"),
    "cpu_us_per_delivery": ("CPU µs/delivery", "{:.2f}"),
    "explained": ("by batch size", "{:.2f}"),
    "beyond": ("beyond that", "{:+.0%}"),
    "cpu_us_per_publication": ("CPU µs/publication", "{:,.0f}"),
    "deliveries_per_second": ("deliveries/s", "{:,.0f}"),
    "kept_kb_per_publication": ("KB/kept", "{:.2f}"),
}
Case = tuple[int, int]  # rooms, history


def one(bench: Bench, label: str, case: Case) -> Row:
    """A fresh daemon with so many rooms, each of which keeps so much."""
    options, (rooms_wanted, history) = bench.options, case
    settings = {"HUBBUB_HISTORY_SIZE": str(history), "HUBBUB_HISTORY_BYTES_MAX": str(2**24)}
    with (
        bench.daemon(options.connections, settings) as target,
        bench.progress(label) as progress,
        Crowd(target, bench.deadline(), progress, options.size) as crowd,
    ):
        rooms = [Room(f"room-{i}") for i in range(rooms_wanted)]
        members = options.connections // rooms_wanted
        clients = [
            Client(crowd, f"connection {room.name} {i}", room, structured=False)
            for room in rooms
            for i in range(members)
        ]
        crowd.open(clients)
        speakers = [clients[i * members : i * members + min(10, members)] for i in range(rooms_wanted)]
        gc.collect()
        gc.disable()
        try:
            _fill(crowd, rooms, speakers, min(history, options.fill // rooms_wanted))
            _turns(crowd, rooms, speakers, options.warmup, "warm-up")
            published, received, watch = crowd.published, crowd.received, Watch(target)
            _turns(crowd, rooms, speakers, options.seconds, label)
            row = watch.stop()
            crowd.check()
        finally:
            gc.enable()
        kept, kept_bytes = _kept(target)
        due = sum(min(history, len(room.sent)) for room in rooms)
        if kept != due:
            raise BenchError(f"{kept:.0f} publications are kept where {due} are due: the limits of bytes were met")
    deliveries = crowd.received - received
    return row | {
        "rooms": rooms_wanted,
        "members": members,
        "history": history,
        "cpu_us_per_delivery": (row["cpu_us"] or 0) / deliveries,
        "cpu_us_per_publication": (row["cpu_us"] or 0) / (crowd.published - published),
        "deliveries_per_second": deliveries / (row["seconds"] or 1),
        "kept": kept,
        "kept_kb_per_publication": kept_bytes / kept / 1024 if kept else None,
    }


def _kept(target: Target) -> tuple[float, float]:
    """How many publications the server keeps, and their bytes as it estimates them."""
    now = metrics(target)
    return now["hubbub_history_publications"], now["hubbub_history_bytes"]


def _fill(crowd: Crowd, rooms: Sequence[Room], speakers: Sequence[Sequence[Client]], each: int) -> None:
    """Publish until the histories are as long as they may be: only then does each publication displace another."""
    done = 0
    while done < each:
        for room, clients in zip(rooms, speakers, strict=True):
            crowd.publish(clients[0], room, count=min(50, each - done))
        crowd.drain()
        done += 50


def _turns(
    crowd: Crowd, rooms: Sequence[Room], speakers: Sequence[Sequence[Client]], duration: float, label: str
) -> None:
    began, turn = clock(), 0
    while (share := (clock() - began) / 1e9 / duration) < 1:
        for room, clients in zip(rooms, speakers, strict=True):
            crowd.publish(clients[turn % len(clients)], room)
        crowd.drain()
        crowd.poll(label, share)
        turn += 1


def explain(rows: dict[Case, Row]) -> tuple[float, float]:
    """What a delivery and what a publication costs, if nothing else does: µs, from the fewest and the most rooms.

    A publication to n members then costs `publication + n × delivery`, so a delivery `delivery + publication / n`.
    """
    shown = sorted(rows.values(), key=lambda row: row["members"] or 0)
    most, fewest = shown[0], shown[-1]
    if most["members"] == fewest["members"]:
        return fewest["cpu_us_per_delivery"] or 0, 0.0
    shares = 1 / (most["members"] or 1), 1 / (fewest["members"] or 1)
    costs = most["cpu_us_per_delivery"] or 0, fewest["cpu_us_per_delivery"] or 0
    publication = (costs[0] - costs[1]) / (shares[0] - shares[1])
    return costs[1] - publication * shares[1], publication


def measure(bench: Bench) -> None:
    """Numbers of rooms with the usual history, then histories in the middle number of rooms; all in turn, repeated."""
    options = bench.options
    usual = int(options.history[min(1, len(options.history) - 1)])
    by_rooms = [(int(rooms), usual) for rooms in options.rooms]
    middle_rooms = by_rooms[len(by_rooms) // 2][0]
    cases = [*by_rooms, *((middle_rooms, int(kept)) for kept in options.history if int(kept) != usual)]
    found: dict[Case, list[Row]] = {case: [] for case in cases}
    for i in range(options.repeat):
        for case in cases:
            found[case].append(one(bench, f"{i + 1}/{options.repeat} {case[0]} rooms, {case[1]} kept", case))
    middle = {case: medians(rows) for case, rows in found.items()}
    delivery, publication = explain({case: middle[case] for case in by_rooms})
    for row in middle.values():
        explained = delivery + publication / (row["members"] or 1)
        row |= {"explained": explained, "beyond": (row["cpu_us_per_delivery"] or 0) / explained - 1}
    bench.outcome.update(
        delivery_us=delivery,
        publication_us=publication,
        results=[{"rooms": case[0], "median": middle[case], "repeats": rows} for case, rows in found.items()],
    )
    lines = [cells(f"{case[0]:,}", row, COLUMNS) for case, row in middle.items()]
    print(table(["rooms", *(title for title, _ in COLUMNS.values())], lines))
    print(f"by batch size: {delivery:.2f} µs a delivery and {publication:.1f} µs a publication, from the extremes")
    tell_disturbed(middle.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        numbers = [case[0] for case in by_rooms]
        for label, column, style in (("measured", "cpu_us_per_delivery", "o-"), ("by batch size", "explained", "--")):
            axes.plot(numbers, [middle[case][column] for case in by_rooms], style, label=label)
        axes.set(xlabel=f"rooms, among which {options.connections:,} are divided", ylabel="µs a delivery", xscale="log")
        axes.legend()

    plot(options.plot, "What a delivery costs by number of rooms", draw)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    made = parser("rooms.py", "Measure what a delivery costs by number of rooms and by history.")
    add = made.add_argument
    add("--connections", type=count, default=1000, metavar="N", help="in all rooms together (1000)")
    add(
        "--rooms",
        type=listed(number(int, 1, "whole numbers from 1")),
        default=[1, 100, 1000],
        metavar="N,…",
        help="numbers of rooms (1,100,1000)",
    )
    add(
        "--history",
        type=listed(number(int, 0, "whole numbers from 0")),
        default=[0, 100, 10_000],
        metavar="N,…",
        help="publications kept; by number of rooms it is the second (0,100,10000)",
    )
    add(
        "--fill",
        type=count,
        default=200_000,
        metavar="N",
        help="publications beforehand at most, in all rooms together, so that histories are full (200000)",
    )
    add(
        "--size",
        type=number(int, STAMP_SIZE, f"a whole number from {STAMP_SIZE}"),
        default=100,
        metavar="BYTES",
        help="of a message (100)",
    )
    add("--seconds", type=seconds, default=2, help="to measure each (2)")
    add("--warmup", type=seconds, default=0.5, metavar="SECONDS", help="before it (0.5)")
    add("--repeat", type=count, default=2, metavar="N", help="times, each with a fresh daemon (2)")
    options = checked(made, arguments)
    if any(options.connections % rooms for rooms in options.rooms):
        made.error("argument --rooms: each must divide --connections")
    return run("rooms.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
