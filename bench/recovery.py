"""Recovery: all are cut off at once, miss some, and come back at once for exactly what they have missed.

    python bench/recovery.py --connections 5000 --missed 100

See bench/README.md.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from client import Client
from crowd import Crowd
from dialects import BenchError
from loadgen import clock, notice, percentile
from options import SERVER_URL, Parser
from probe import endings, listen_drops
from report import FROM_OUTSIDE, Bench, Row, Watch, no_collection, per, plot, run, show, tell_disturbed
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
JOINS = "with joins and leaves told"
EARLIER = 10  # publications that everyone has seen before the cut
AROUND = 300  # bytes: more than what is kept, and what is sent, is longer than a message
BYTES_MAX = 2**20  # hubbub's default for a room's history, and for what waits for a client


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


def one(bench: Bench, label: str, case: str) -> Row:
    """A fresh daemon: in, cut off, published, back."""
    connections = int(bench.options.join_leave if case == JOINS else bench.options.connections)
    missed = int(bench.options.missed)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".toml"))
        file.write(NAMESPACE)
        file.flush()
        settings = {
            **FROM_OUTSIDE,
            "HUBBUB_HISTORY_SIZE": str(max(100, missed)),
            "HUBBUB_HISTORY_BYTES_MAX": str(missed_bytes(bench)),
            "HUBBUB_OUTBOX_BYTES_MAX": str(missed_bytes(bench)),
            "HUBBUB_RECOVERY_PUBLICATIONS_MAX": str(max(300, missed)),
        }
        arguments = ("--config", file.name)
        gathering = Storm.gather(bench, label, connections + 1, settings, arguments, bench.options.size)
        crowd = stack.enter_context(gathering)
        room = Room(bench.room("told:bench" if case == JOINS else "bench"))
        speaker = Client(crowd, "publisher", None, structured=True)
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
        stack.enter_context(no_collection())
        return _storm(bench, crowd, speaker, room, [(epoch, since)] * connections, missed)


def missed_bytes(bench: Bench) -> int:
    """How many the server must be able to keep in a room, and to have waiting for a client: all that it missed."""
    return max(BYTES_MAX, int(bench.options.missed) * (int(bench.options.size) + AROUND))


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
    bench: Bench, crowd: Storm, speaker: Client, room: Room, positions: Sequence[tuple[str, int]], missed: int
) -> Row:
    """All come back at once; then one more publication must reach them all."""
    target = crowd.target
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
    bench.must_be_of_others(endings(target, earlier))
    back = sorted((client.opened_at - began) / 1e9 for client in returning)
    return row | {
        "connections": len(returning),
        "first_seconds": back[0],
        "half_seconds": percentile(back, 0.5),
        "last_seconds": back[-1],
        "live_seconds": live,
        **{f"back_{share}_seconds": percentile(back, share / 100) for share in SHARES},
        "turned_away": listen_drops() - drops if target.pid else None,
        "recovered": crowd.recovered,
        "cpu_us_per_client": per(row["cpu_us"], len(returning)),
        "memberships": crowd.memberships,
    }


def _tells_joins(bench: Bench) -> bool:
    """Whether the second row is to be measured, and can be: the server at --url needs a namespace for it."""
    if not bench.options.join_leave or bench.target is None:
        return bool(bench.options.join_leave)
    try:
        with Crowd.gather(bench, "namespace", 2) as crowd:
            room = Room(bench.room("told:bench"))
            for name in ("the first", "the second"):
                crowd.open([Client(crowd, name, room, structured=True)])
            crowd.wait(0.3)
            told = crowd.memberships > 0
    except BenchError:
        told = False
    if not told:
        needed = "a namespace 'told' with join_leave and force_join_leave"
        notice(f"the row {JOINS!r} is left out: for it the server at --url must have {needed}")
    return told


def measure(bench: Bench) -> None:
    """Both rows, in turn, as often as asked for."""
    options = bench.options
    kept = f"history_size and recovery_publications_max {options.missed} or more"
    room = f"history_bytes_max and outbox_bytes_max {missed_bytes(bench):,} or more"
    bench.needs(max(2 * options.connections, options.join_leave) + 1, kept, room, 'allow_publish = "anonymous"')
    cases = {case: case for case in ("recovery", JOINS) if case != JOINS or _tells_joins(bench)}
    rows, middle = bench.repeated(cases, one)
    bench.outcome.update(repeats=rows, median=middle)
    show(f"{options.missed} missed", [*middle.items()], COLUMNS)
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
    parser = Parser("recovery.py", "Cut all clients off, and have all come back at once for what they missed.")
    parser.common(SERVER_URL)
    parser.whole("--connections", 5000, "clients")
    parser.whole("--missed", 100, "publications meanwhile", metavar="M")
    parser.size()
    parser.whole("--join-leave", 500, "clients of the second row, where joins and leaves are told; 0: none", least=0)
    parser.repeat(2)
    return run("recovery.py", parser.checked(arguments), measure)


if __name__ == "__main__":
    sys.exit(main())
