"""P1 to P6, and the joins and leaves of P7, through the structured dialect: random lives of a hub, read on its wires.

No task, no I/O, no clock. Clients send JSON and read JSON, some are plain; commands come to the hub in passes of any
size, with hand-outs at any moment in between; `dialect_world` knows what each client must have read at the end of
each pass: exactly that, in that order, and nothing else.
"""

import sys

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dialect_driver import KEY_SECONDS, META_SECONDS, ROOMS, SECONDS, Client, PlainClient, small_settings
from dialect_world import World
from hubbub.core.frames import BINARY, TEXT
from known import commands_of

pytestmark = pytest.mark.no_cover  # twice as fast; other tests reach the same lines

USERS = ("ann", "ann", "bob", "")
SLOTS = st.integers(0, len(USERS) - 1)
PLAIN_ROOMS = st.sampled_from(["north", "mute:1", "tiny:1", "loud:1"])
ANY_ROOM = st.sampled_from(["north", "north", "north", "loud:1", "loud:1", "tiny:1", "tiny:1", "mute:1", "no:1"])
KEYS = st.sampled_from(["", "", "", "", "a", "a", "b", "c", "d"])
MORE = st.sampled_from([False, False, True])
"""Whether the client waits with its frame, to send more in it."""
PLACE = st.tuples(
    st.sampled_from([0, 0, 0, 0, 0, 1, 2]),
    st.sampled_from([1, 1, 2, 3, 4, 5, 6, 0, -1]),
    st.sampled_from([False, False, False, True]),
)
"""Somewhere in a room: so many epochs ago, so far behind its top (-1: ahead of it); whether the epoch isn't said."""


class StructuredLife(RuleBasedStateMachine):
    """What clients do, and when the hub gets to it."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(small_settings())
        self.slots: dict[int, Client] = {}
        self.plain: dict[int, PlainClient] = {}
        self.said = 0

    def client(self, slot: int) -> Client:
        """Return the client in that slot, or a new one."""
        client = self.slots.get(slot)
        if client is None:
            client = self.slots[slot] = self.world.connect(USERS[slot])
            self.world.clients.append(client)
        return client

    def ask(self, slot: int, more: bool, method: str, **body: object) -> None:
        client = self.client(slot)
        client.ask(method, **body)
        if not more:
            self.world.arrive(client)

    def choose(self, slot: int, room: str, there: bool) -> str:
        """Return that room, or rather the next in which the client is, or isn't, now."""
        rooms = ROOMS[ROOMS.index(room) :] + ROOMS[: ROOMS.index(room)] if room in ROOMS else ()
        client = self.client(slot)
        return next((name for name in rooms if (client in self.world.members.get(name, {})) == there), room)

    def place(self, room: str, where: tuple[int, int, bool]) -> tuple[str, int]:
        """Return an epoch and an offset there."""
        ago, behind, silent = where
        lives = self.world.lives.get(room, [])
        if ago >= len(lives):
            return "never", max(0, behind)
        life = lives[-1 - ago]
        return "" if silent else life.epoch, max(0, len(life.said) - behind)

    @initialize(rooms=st.lists(st.sets(st.sampled_from(ROOMS), max_size=2), min_size=len(USERS), max_size=len(USERS)))
    def begin(self, rooms: list[set[str]]) -> None:
        for slot, some in enumerate(rooms):
            for room in sorted(some):
                self.ask(slot, True, "subscribe", channel=room, join_leave=slot < 2)

    @rule(
        slot=SLOTS,
        more=MORE,
        room=ANY_ROOM,
        since=st.none() | PLACE,
        flag=st.sampled_from([0, 0, 2]),
        wishes=st.sets(st.sampled_from(["recoverable", "positioned", "join_leave"])),
        stubborn=st.sampled_from([False, False, False, True]),
    )
    def subscribe(
        self,
        slot: int,
        more: bool,
        room: str,
        since: tuple[int, int, bool] | None,
        flag: int,
        wishes: set[str],
        stubborn: bool,
    ) -> None:
        room = room if stubborn else self.choose(slot, room, there=False)
        body: dict[str, object] = dict.fromkeys(sorted(wishes), True)
        if since is not None:
            epoch, offset = self.place(room, since)
            body |= {"recover": True, "epoch": epoch, "offset": offset}
        self.ask(slot, more, "subscribe", channel=room, flag=flag, **body)

    @rule(slot=SLOTS, more=MORE, room=ANY_ROOM)
    def unsubscribe(self, slot: int, more: bool, room: str) -> None:
        self.ask(slot, more, "unsubscribe", channel=self.choose(slot, room, there=True))

    @rule(slot=SLOTS, more=MORE, room=ANY_ROOM, times=st.integers(1, 4), key=KEYS, text=st.booleans())
    def publish(self, slot: int, more: bool, room: str, times: int, key: str, text: bool) -> None:
        """Say something some times, the first time with a key."""
        for each in range(times):
            self.said += 1
            data: object = f"said {self.said} ⟨✓⟩" if text else {"n": self.said, "list": [1, None]}
            keyed = {"idempotency_key": key} if key and not each else {}
            self.ask(slot, more or each < times - 1, "publish", channel=room, data=data, **keyed)

    @rule(slots=st.permutations(range(len(USERS))), room=st.sampled_from(ROOMS), times=st.integers(2, 6))
    def publish_together(self, slots: list[int], room: str, times: int) -> None:
        """Several say something, in turns."""
        for each in range(times):
            self.publish(slots[each % 3], False, room, 1, "", False)

    @rule(
        slot=SLOTS,
        more=MORE,
        room=ANY_ROOM,
        method=st.sampled_from(["history", "history", "history", "presence", "presence_stats", "rpc"]),
        limit=st.sampled_from([-1, 0, 1, 2, 99]),
        since=st.none() | PLACE,
        reverse=st.booleans(),
    )
    def look(
        self,
        slot: int,
        more: bool,
        room: str,
        method: str,
        limit: int,
        since: tuple[int, int, bool] | None,
        reverse: bool,
    ) -> None:
        """Ask what changes nothing."""
        body: dict[str, object] = {"limit": limit, "reverse": reverse}
        if since is not None:
            epoch, offset = self.place(room, since)
            body["since"] = {"epoch": epoch, "offset": offset}
        self.ask(slot, more, method, channel=room, **(body if method == "history" else {}))

    @rule(slot=SLOTS)
    def disconnect(self, slot: int) -> None:
        """Whatever waits of its commands is carried out all the same."""
        client = self.slots.pop(slot, None)
        if client is not None:
            self.world.disconnect(client)

    @rule(slot=st.integers(0, 1), room=PLAIN_ROOMS, history=st.integers(0, 5))
    def come_plain(self, slot: int, room: str, history: int) -> None:
        """A plain client goes, another comes."""
        client = self.plain.pop(slot, None)
        if client is not None:
            self.world.disconnect(client)
        client = self.plain[slot] = self.world.connect_plain(room, history)
        self.world.clients.append(client)
        (command,) = commands_of(client.conversation.opening(client.reply))
        self.world.inbox.append((client, command, {"subscribe": {"channel": room}}))

    @rule(slot=st.integers(0, 1), binary=st.booleans())
    def say_plainly(self, slot: int, binary: bool) -> None:
        client = self.plain.get(slot)
        if client is not None and client.opened:
            self.said += 1
            data = f'said "{self.said}"'.encode()
            (command,) = commands_of(client.conversation.receive(data, binary))
            frame = (BINARY if binary else TEXT, data)
            self.world.inbox.append((client, command, {"publish": {"channel": client.room, "frame": frame}}))

    @precondition(lambda self: self.world.inbox)
    @rule(count=st.integers(1, 8))
    def work(self, count: int) -> None:
        """The hub carries out some of what waits."""
        for _ in range(min(count, len(self.world.inbox))):
            self.world.work()

    @rule(room=st.sampled_from(ROOMS))
    def hand_out(self, room: str) -> None:
        """A room is handed out early, as for its size."""
        self.world.hand_out(room)

    @rule()
    def end_pass(self) -> None:
        self.world.end_pass()

    @rule()
    def whole_pass(self) -> None:
        """All that was asked for is carried out."""
        for client in self.slots.values():
            self.world.arrive(client)
        while self.world.inbox:
            self.world.work()
        self.world.end_pass()

    @rule(
        seconds=st.sampled_from([1.0, 1.0, 1.0, 1.0, SECONDS / 2, KEY_SECONDS, META_SECONDS + 1]), expire=st.booleans()
    )
    def wait(self, seconds: float, expire: bool) -> None:
        """Time passes; what is too old is cleared away now or later."""
        self.world.now += seconds
        if expire:
            self.world.hub.expire(self.world.now)

    def teardown(self) -> None:
        """P7: when everyone has gone, nothing is left."""
        if sys.exception() is not None:
            return  # it has failed already
        self.whole_pass()
        for client in list(self.world.clients):
            self.world.disconnect(client)
        self.world.end_pass()
        self.world.end_pass()
        statistics = self.world.hub.statistics()
        assert (statistics.rooms, statistics.subscriptions, self.world.hub.waiting()) == (0, 0, [])


StructuredLife.TestCase.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)
test_structured_life = StructuredLife.TestCase
