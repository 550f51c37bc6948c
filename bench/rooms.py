"""Rooms: what a delivery costs by the number of rooms among which the same connections are divided, and by history.

    python bench/rooms.py --connections 1000 --rooms 1,100,1000 --history 0,100,10000

Each turn, one member of each room publishes, and the next turn begins when everyone has everything. So each turn is as
many deliveries, whatever the number of rooms; what differs is for how many of them a publication is. See
bench/README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from client import Client
from crowd import Crowd
from dialects import BenchError
from loadgen import Target, clock, notice
from options import DEADLINE, SERVER_URL, Parser, plan
from probe import metrics
from report import Bench, Row, Watch, no_collection, per, plot, run, show, tell_disturbed
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
FILLED_PER_SECOND = 20_000  # deliveries, at least: a tenth of what is usual
Case = tuple[int, int]  # rooms, history


def one(bench: Bench, label: str, case: Case) -> Row:
    """A fresh daemon with so many rooms, each of which keeps so much."""
    options, (rooms_wanted, history) = bench.options, case
    settings = {"HUBBUB_HISTORY_SIZE": str(history), "HUBBUB_HISTORY_BYTES_MAX": str(2**24)}
    with Crowd.gather(bench, label, options.connections, settings, size=options.size) as crowd:
        rooms = [Room(bench.room(f"room-{i}")) for i in range(rooms_wanted)]
        members = options.connections // rooms_wanted
        clients = [
            Client(crowd, f"connection {room.name} {i}", room, structured=False)
            for room in rooms
            for i in range(members)
        ]
        crowd.open(clients)
        speakers = [clients[i * members : i * members + min(10, members)] for i in range(rooms_wanted)]
        with no_collection():
            _fill(crowd, rooms, speakers, min(history, options.fill // rooms_wanted))
            _turns(crowd, rooms, speakers, options.warmup, "warm-up")
            published, received, watch = crowd.published, crowd.received, Watch(crowd.target)
            _turns(crowd, rooms, speakers, options.seconds, label)
            row = watch.stop()
            crowd.check()
        due = sum(min(history, len(room.sent)) for room in rooms)
        kept: Row = {"history": None} if bench.target else {"history": history, **_kept(crowd.target, due)}
    deliveries = crowd.received - received
    return row | {
        "rooms": rooms_wanted,
        "members": members,
        "cpu_us_per_delivery": per(row["cpu_us"], deliveries),
        "cpu_us_per_publication": per(row["cpu_us"], crowd.published - published),
        "deliveries_per_second": deliveries / (row["seconds"] or 1),
        **kept,
    }


def _kept(target: Target, due: int) -> Row:
    """How many publications the server keeps, and what one takes, as it estimates; they must be those that are due."""
    now = metrics(target)
    kept, kept_bytes = now["hubbub_history_publications"], now["hubbub_history_bytes"]
    if kept != due:
        raise BenchError(f"{kept:.0f} publications are kept where {due} are due: the limits of bytes were met")
    return {"kept": kept, "kept_kb_per_publication": kept_bytes / kept / 1024 if kept else None}


def filling(options: argparse.Namespace) -> float:
    """How many seconds the filling of histories may take."""
    each = min(max(options.history), options.fill // min(options.rooms))
    return float(each * options.connections / FILLED_PER_SECOND)


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


def explain(rows: Mapping[Case, Row]) -> tuple[float, float] | None:
    """What a delivery and what a publication costs, if nothing else does: µs, from the fewest and the most rooms.

    A publication to n members then costs `publication + n × delivery`, so a delivery `delivery + publication / n`.
    None if what they cost isn't known.
    """
    by_members = sorted((row["members"] or 1, row["cpu_us_per_delivery"]) for row in rows.values())
    (few, costly), (many, cheap) = by_members[0], by_members[-1]
    if costly is None or cheap is None:
        return None
    publication = (costly - cheap) / (1 / few - 1 / many) if few < many else 0.0
    return cheap - publication / many, publication


def _explained(row: Row, constants: tuple[float, float] | None) -> Row:
    """What a delivery should cost by these constants, and what it costs beyond that."""
    if constants is None:
        return {"explained": None, "beyond": None}
    explained = constants[0] + constants[1] / (row["members"] or 1)
    return {"explained": explained, "beyond": (row["cpu_us_per_delivery"] or 0) / explained - 1}


def measure(bench: Bench) -> None:
    """Numbers of rooms with the usual history, then histories in the middle number of rooms; all in turn, repeated."""
    options = bench.options
    usual = int(options.history[min(1, len(options.history) - 1)])
    by_rooms = [(int(rooms), usual) for rooms in options.rooms]
    middle_rooms = by_rooms[len(by_rooms) // 2][0]
    histories = [(middle_rooms, int(kept)) for kept in options.history if int(kept) != usual]
    bench.needs(options.connections)
    if bench.target:
        notice(
            "--history is left out: what the server at --url keeps is its own matter (history_size), and not checked"
        )
        histories = []
    cases = {case: f"{case[0]} rooms, {case[1]} kept" for case in (*by_rooms, *histories)}
    found, middle = bench.repeated(cases, one)
    constants = explain({case: middle[case] for case in by_rooms})
    for row in middle.values():
        row |= _explained(row, constants)
    bench.outcome.update(
        results=[{"rooms": case[0], "median": middle[case], "repeats": rows} for case, rows in found.items()],
    )
    show("rooms", [(f"{case[0]:,}", row) for case, row in middle.items()], COLUMNS)
    if constants:
        delivery, publication = constants
        bench.outcome.update(delivery_us=delivery, publication_us=publication)
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
    parser = Parser("rooms.py", "Measure what a delivery costs by number of rooms and by history.")
    parser.common(SERVER_URL, deadline=DEADLINE)
    parser.whole("--connections", 1000, "in all rooms together")
    parser.listed("--rooms", int, [1, 100, 1000], "numbers of rooms", least=1, metavar="N,…")
    of = "publications kept, not with --url; by number of rooms it is the second"
    parser.listed("--history", int, [0, 100, 10_000], of, least=0, metavar="N,…")
    of = "publications beforehand at most, in all rooms together, so that histories are full"
    parser.whole("--fill", 200_000, of)
    parser.size()
    parser.times(2, 0.5, 2, "each")
    options = parser.checked(arguments)
    if any(options.connections % rooms for rooms in options.rooms):
        parser.error("argument --rooms: each must divide --connections")
    plan(options, options.warmup + options.seconds + filling(options), options.connections)
    return run("rooms.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
