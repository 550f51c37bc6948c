"""Recovery: all are cut off at once, miss some, and come back at once for exactly what they have missed.

    python bench/recovery.py --connections 5000 --missed 100

See bench/README.md.
"""

from __future__ import annotations

import contextlib
import gc
import json
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from client import Client
from crowd import Crowd, endings
from dialects import STAMP_SIZE, BenchError
from loadgen import Target, clock, percentile, table
from probe import listen_drops
from report import (
    Bench,
    Row,
    Watch,
    cells,
    checked,
    count,
    counts_from_0,
    medians,
    number,
    parser,
    plot,
    run,
    tell_disturbed,
)
from room import Room, Seat

COLUMNS = {
    "connections": ("clients", "{:,.0f}"),
    "first_seconds": ("first back s", "{:.2f}"),
    "half_seconds": ("half back s", "{:.2f}"),
    "last_seconds": ("last has recovered s", "{:.2f}"),
    "live_seconds": ("live message at all s", "{:.2f}"),
    "recovered": ("recovered", "{:,.0f}"),
    "turned_away": ("turned away", "{:,.0f}"),
    "cpu_us_per_client": ("CPU µs/client", "{:.0f}"),
    "memberships": ("joins, leaves told", "{:,.0f}"),
}
NAMESPACE = "[namespaces.told]\njoin_leave = true\nforce_join_leave = true\n"
SHARES = range(5, 101, 5)  # per cent of the clients: when they were back
EARLIER = 10  # publications that everyone has seen before the cut


class Returning(Client):
    """A client that comes back from a position, and checks what it is given for it."""

    __slots__ = ("epoch", "since")

    def come_from(self, epoch: str, since: int) -> None:
        """Say where it was: the epoch, and the offset of the last publication that it saw."""
        self.epoch, self.since = epoch, since

    def hello(self) -> list[str]:
        """The commands that come first: `connect`, and `subscribe` with its position."""
        asked = {"channel": self.room.name if self.room else "", "recover": True, "positioned": True}
        subscribe = json.dumps(asked | {"epoch": self.epoch, "offset": self.since})
        return ['"connect":{"name":"bench"}', f'"subscribe":{subscribe}']

    def on_greeting(self, line: bytes) -> None:
        """Nothing lost, nothing doubled: every publication of the reply is taken as a delivery, in order."""
        if not line.startswith(b'{"id":2'):
            super().on_greeting(line)
            return
        assert isinstance(self.crowd, Storm)
        if line != self.crowd.checked_reply:  # most are the same bytes, which then need no second look
            self._check(line)
            self.crowd.checked_reply = line
        super().on_greeting(self.crowd.bare_reply)
        if self.room:
            self.seat = Seat(self.name, len(self.room.sent))
        self.crowd.recovered += self.crowd.missed

    def _check(self, line: bytes) -> None:
        assert isinstance(self.crowd, Storm)
        assert self.room
        body = json.loads(line).get("subscribe", {})
        found = body.pop("publications", [])
        if not body.get("recovered") or body.get("epoch") != self.epoch:
            raise BenchError(f"{self.name} hasn't recovered: {line[:300]!r}")
        seat = Seat(self.name, self.since - (self.room.base or 0))
        for publication in found:
            self.room.take(seat, publication["data"].encode(), publication["offset"])
        if fault := self.room.missing(seat):
            raise BenchError(f"in what it recovered, {fault}")
        self.crowd.bare_reply = json.dumps({"id": 2, "subscribe": body}).encode()


class Storm(Crowd):
    """A crowd that remembers which reply it has checked already."""

    checked_reply = bare_reply = b""
    recovered = missed = 0


def one(bench: Bench, label: str, connections: int, missed: int, room_name: str, size: int) -> Row:
    """A fresh daemon: in, cut off, published, back."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".toml"))
        file.write(NAMESPACE)
        file.flush()
        settings = {
            "HUBBUB_HISTORY_SIZE": str(max(100, missed)),
            "HUBBUB_RECOVERY_PUBLICATIONS_MAX": str(max(300, missed)),
        }
        target = stack.enter_context(bench.daemon(connections + 1, settings, ("--config", file.name)))
        progress = stack.enter_context(bench.progress(label))
        crowd = stack.enter_context(Storm(target, bench.deadline(), progress, size))
        room, speaker = Room(room_name), Client(crowd, "publisher", None, structured=True)
        clients = [Client(crowd, f"client {i}", room, structured=True) for i in range(connections)]
        crowd.open([speaker, *clients])
        crowd.wait(0.2)
        epoch = _epoch(crowd, room)
        for _ in range(EARLIER):
            crowd.publish(speaker, room)
        crowd.check()
        crowd.cut(clients)
        since = len(room.sent) + (room.base or 0)
        for _ in range(missed):
            crowd.publish(speaker, room)
        crowd.check()
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        return _storm(crowd, target, speaker, room, [(epoch, since)] * connections, missed)


def _epoch(crowd: Crowd, room: Room) -> str:
    """The room's, as somebody is told who subscribes."""
    epochs: list[str] = []

    class Asking(Client):
        __slots__ = ()

        def on_greeting(self, line: bytes) -> None:
            epochs.append(json.loads(line).get("subscribe", {}).get("epoch", ""))
            super().on_greeting(line)

    asking = Asking(crowd, "who asks for the epoch", room, structured=True)
    crowd.open([asking])
    crowd.cut([asking])
    return epochs[-1]


def _storm(
    crowd: Storm, target: Target, speaker: Client, room: Room, positions: Sequence[tuple[str, int]], missed: int
) -> Row:
    """All come back at once; then one more publication must reach them all."""
    crowd.missed, crowd.memberships = missed, 0
    returning = [Returning(crowd, f"returning client {i}", room, structured=True) for i in range(len(positions))]
    for client, position in zip(returning, positions, strict=True):
        client.come_from(*position)
    earlier, drops = endings(target), listen_drops()
    watch, began = Watch(target), clock()
    crowd.open(returning, in_flight=len(returning))
    row = watch.stop()
    crowd.publish(speaker, room)
    crowd.drain()
    live = (clock() - began) / 1e9
    crowd.check(settle=0.3)
    ended = endings(target, earlier)
    if unexpected := {reason: number for reason, number in ended.items() if not reason.startswith("peer_")}:
        raise BenchError(f"the server ended well-behaved connections: {unexpected}")
    back = sorted((client.opened_at - began) / 1e9 for client in returning)
    return row | {
        "connections": len(returning),
        "first_seconds": back[0],
        "half_seconds": percentile(back, 0.5),
        "last_seconds": back[-1],
        "live_seconds": live,
        **{f"back_{share}_seconds": percentile(back, share / 100) for share in SHARES},
        "turned_away": listen_drops() - drops,
        "recovered": crowd.recovered,
        "cpu_us_per_client": (row["cpu_us"] or 0) / len(returning),
        "memberships": crowd.memberships,
    }


def measure(bench: Bench) -> None:
    """Both rows, in turn, as often as asked for."""
    options = bench.options
    cases = {"recovery": (int(options.connections), "bench")}
    if options.join_leave:
        cases["with joins and leaves told"] = (int(options.join_leave), "told:bench")
    rows: dict[str, list[Row]] = {name: [] for name in cases}
    for i in range(options.repeat):
        for name, (connections, room) in cases.items():
            label = f"{i + 1}/{options.repeat} {name}"
            rows[name].append(one(bench, label, connections, int(options.missed), room, int(options.size)))
    middle = {name: medians(found) for name, found in rows.items()}
    bench.outcome.update(repeats=rows, median=middle)
    lines = [cells(name, row, COLUMNS) for name, row in middle.items()]
    print(table([f"{options.missed} missed", *(title for title, _ in COLUMNS.values())], lines))
    tell_disturbed(middle.values())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, row in middle.items():
            label = f"{name}, {row['connections']:,.0f} clients"
            axes.plot([row[f"back_{share}_seconds"] for share in SHARES], SHARES, "o-", label=label)
        axes.set(xlabel="seconds after all began to come back", ylabel="% have recovered", xlim=(0, None))
        axes.legend()

    plot(options.plot, f"All come back at once, and recover {options.missed} publications each", draw)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 if there is no result or it fails its check."""
    made = parser("recovery.py", "Cut all clients off, and have all come back at once for what they missed.")
    add = made.add_argument
    add("--connections", type=count, default=5000, metavar="N", help="clients (5000)")
    add("--missed", type=count, default=100, metavar="M", help="publications meanwhile (100)")
    add(
        "--size",
        type=number(int, STAMP_SIZE, f"a whole number from {STAMP_SIZE}"),
        default=100,
        metavar="BYTES",
        help="of a message (100)",
    )
    add(
        "--join-leave",
        type=counts_from_0,
        default=500,
        metavar="N",
        help="clients of the second row, where joins and leaves are told; 0: none (500)",
    )
    add("--repeat", type=count, default=2, metavar="N", help="times, each with a fresh daemon (2)")
    return run("recovery.py", checked(made, arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
