"""Connections: memory of idle ones, the cost of handshakes, a storm of returning clients, and many held at once.

    python bench/connections.py                # 1,000 for memory and storm, then as many as the file limit allows
    python bench/connections.py --hold 0       # without the last part

See bench/README.md.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from typing import Any

from client import Client
from crowd import PORTS, Crowd
from loadgen import Target, clock, notice, percentile, resident_kb
from options import SERVER_URL, Parser
from probe import endings, listen_drops
from report import Bench, Row, Watch, medians, per, plot, run, show, tell_disturbed
from room import Room

DIALECTS = ("plain", "structured")
HOLD_MIN, HOLD_MAX = 2, 15_000  # the first isn't counted
FILES_APART = 500  # of the server's: its own, and those it keeps to answer 503
COLUMNS = {
    "memory_kb_per_connection": ("KB/connection", "{:.1f}"),
    "handshakes_per_second": ("handshakes/s", "{:,.0f}"),
    "cpu_us_per_handshake": ("CPU µs/handshake", "{:.0f}"),
    "storm_seconds": ("storm: last back s", "{:.2f}"),
    "storm_p50_seconds": ("half back s", "{:.2f}"),
    "turned_away": ("turned away", "{:,.0f}"),
    "storm_cpu_us_per_connection": ("CPU µs/connection", "{:.0f}"),
}
HELD = {
    "connections": ("held", "{:,.0f}"),
    "memory_kb_per_connection": ("KB/connection", "{:.1f}"),
    "resident_mb": ("server MB", "{:,.0f}"),
    "handshakes_per_second": ("handshakes/s", "{:,.0f}"),
    "first_ms": ("first has it ms", "{:.1f}"),
    "last_ms": ("last has it ms", "{:.1f}"),
    "cpu_us_per_delivery": ("CPU µs/delivery", "{:.2f}"),
}


def settle_memory(crowd: Crowd, target: Target) -> int:
    """The server's resident KB, a while after the last of what it was asked."""
    crowd.wait(0.3, "memory")
    return resident_kb(target.pid) if target.pid else 0


def crowd_of(crowd: Crowd, number: int, room: Room, structured: bool) -> list[Client]:
    """Clients of one room that haven't been started."""
    return [Client(crowd, f"connection {i}", room, structured=structured) for i in range(number)]


def idle_and_storm(bench: Bench, label: str, dialect: str) -> Row:
    """A fresh daemon: what N cost to open and to keep; then all are cut at once, and all come back at once."""
    number, structured = int(bench.options.connections), dialect == "structured"
    with Crowd.gather(bench, label, number) as crowd:
        target, room = crowd.target, Room(bench.room("bench"))
        first = crowd_of(crowd, 1, room, structured)
        crowd.open(first)  # what is imported and cached for the first connection is not a connection's memory
        before = settle_memory(crowd, target)
        watch, clients = Watch(target), crowd_of(crowd, number, room, structured)
        crowd.open(clients)
        opening = watch.stop()
        memory = settle_memory(crowd, target) - before
        speak(crowd, clients[0], room)
        storm = come_back(bench, crowd, [*first, *clients], structured)
        return storm | {
            "memory_kb_per_connection": memory / number if bench.tells_memory else None,
            "handshakes_per_second": number / (opening["seconds"] or 1),
            "cpu_us_per_handshake": per(opening["cpu_us"], number),
            "disturbed": opening["disturbed"] or storm["disturbed"],
        }


def speak(crowd: Crowd, speaker: Client, room: Room) -> Row:
    """One publication to all: when the first and the last had it, in ms."""
    watch = Watch(crowd.target)
    crowd.latencies = []
    crowd.publish(speaker, room)
    crowd.drain()
    row = watch.stop()
    crowd.check()
    latencies, crowd.latencies = crowd.latencies, None
    return {
        "first_ms": min(latencies),
        "last_ms": max(latencies),
        "cpu_us_per_delivery": per(row["cpu_us"], len(latencies)),
        "disturbed": row["disturbed"],
    }


def come_back(bench: Bench, crowd: Crowd, clients: Sequence[Client], structured: bool) -> Row:
    """Cut all at once, by resets; all begin to connect at once; each must be back in its room."""
    target, name = crowd.target, clients[0].room.name if clients[0].room else ""
    earlier = endings(target)
    crowd.cut(clients)
    room = Room(name)  # it has an offset already, which the first to come back will tell
    returning = crowd_of(crowd, len(clients), room, structured)
    drops, watch, began = listen_drops(), Watch(target), clock()
    crowd.open(returning, in_flight=len(returning))
    row = watch.stop()
    back = sorted((client.opened_at - began) / 1e9 for client in returning)
    speak(crowd, returning[-1], room)
    ended = endings(target, earlier)
    bench.outcome.setdefault("ended_in_storm", []).append(ended)
    bench.must_be_of_others(ended)
    return {
        "storm_seconds": back[-1],
        "storm_p50_seconds": percentile(back, 0.5),
        "turned_away": listen_drops() - drops if target.pid else None,
        "storm_cpu_us_per_connection": per(row["cpu_us"], len(returning)),
        "disturbed": row["disturbed"],
    }


def hold(bench: Bench, dialect: str) -> Row:
    """As many connections as asked for, on one node, and several publications, each to all of them."""
    number, structured = int(bench.options.hold), dialect == "structured"
    if number > PORTS:
        notice(f"beyond {PORTS:,} connections, clients connect from 127.0.0.3 and so on: an address has no more ports")
    settings = {"HUBBUB_CONNECTIONS_MAX": str(number + 10)}
    with Crowd.gather(bench, f"hold {dialect}", number, settings) as crowd:
        target, room = crowd.target, Room(bench.room("bench"))
        earlier = endings(target)
        crowd.open(crowd_of(crowd, 1, room, structured))
        before = settle_memory(crowd, target)
        watch, clients = Watch(target), crowd_of(crowd, number - 1, room, structured)
        crowd.open(clients)
        opening = watch.stop()
        memory = settle_memory(crowd, target) - before
        spoken = medians([speak(crowd, clients[i % len(clients)], room) for i in range(5)])
        bench.must_be_of_others(endings(target, earlier))
        return spoken | {
            "connections": number,
            "memory_kb_per_connection": memory / len(clients) if bench.tells_memory else None,
            "resident_mb": (before + memory) / 1024 if target.pid else None,
            "handshakes_per_second": len(clients) / (opening["seconds"] or 1),
        }


def measure(bench: Bench) -> None:
    """Both dialects, in turn, as often as asked for; then the many."""
    options = bench.options
    bench.needs(max(2 * options.connections + 1, options.hold))  # in the storm, the old ones may still be there
    rows, middle = bench.repeated({dialect: dialect for dialect in DIALECTS}, idle_and_storm)
    bench.outcome.update(idle_and_storm={"repeats": rows, "median": middle})
    show(f"{options.connections:,} connections", [*middle.items()], COLUMNS)
    held = {dialect: hold(bench, dialect) for dialect in DIALECTS} if options.hold else {}
    bench.outcome["hold"] = held
    if held:
        print()
        show("", [*held.items()], HELD)
    tell_disturbed((*middle.values(), *held.values()))

    def draw(figure: Any) -> None:
        shown = ("memory_kb_per_connection", "cpu_us_per_handshake", "storm_seconds")
        for axes, column in zip(figure.subplots(1, len(shown)), shown, strict=True):
            axes.bar(DIALECTS, [middle[dialect][column] or 0 for dialect in DIALECTS])
            axes.set(ylabel=COLUMNS[column][0])

    plot(options.plot, f"{options.connections:,} connections: to keep, to open, to come back", draw)


def default_hold() -> int:
    """As many as the hard limit of open files lets the server have, up to 15,000; 0 if that is fewer than two."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = HOLD_MAX if hard == resource.RLIM_INFINITY else min(HOLD_MAX, hard - FILES_APART)
    return most if most >= HOLD_MIN else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    parser = Parser("connections.py", "Measure what connections cost: to open, to keep, to come back.")
    parser.common(SERVER_URL)
    parser.whole("--connections", 1000, "for memory, handshakes and the storm")
    most = default_hold()
    parser.whole("--hold", None, f"held at once, 0: none ({most} here, none with --url)", least=0)
    parser.repeat(2)
    options = parser.checked(arguments)
    if options.hold and options.hold < HOLD_MIN:
        parser.error(f"argument --hold: 0, or a whole number from {HOLD_MIN} expected, not '{options.hold}'")
    if options.hold is None:
        options.hold = 0 if options.target else most
        if options.target:
            notice("--hold is left out, as how many the server at --url can have isn't known: --hold N does it")
    return run("connections.py", options, measure)


if __name__ == "__main__":
    sys.exit(main())
