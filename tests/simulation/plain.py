"""Plain clients of a simulated world: in one room from the 101 on, and every message is a publication."""

import random
from typing import TYPE_CHECKING

from hubbub.core.frames import BINARY, TEXT, encode_frame
from hubbub.dialects.plain import PING_FRAME
from hubbub.model.publication import Kind
from simulation.client import Choices, Client
from simulation.record import Message, Room

if TYPE_CHECKING:
    from simulation.world import World


class PlainClient(Client):
    """A plain client.

    Attributes:
        room: where it is.
        history: how many of the past it asks for.
        first: where in the room's order its run begins; None until it has joined.
        seen: how many publications it has seen.
    """

    codes = {  # noqa: RUF012
        "peer_closed": {1000},
        "protocol_error": {1002, 1007},
        "message_too_large": {1009},
        "too_many_fragments": {1008},
        "too_many_control_frames": {1008},
        "no_pong": {1011},
        "slow_consumer": {1013},
        "write_stall": set[int](),
        "peer_left": set[int](),
        "peer_reset": set[int](),
        "shutdown": {1001},
    }

    def __init__(self, world: "World", name: str, room: Room, rng: random.Random) -> None:
        self.history = rng.choice([0, 0, 3, 10, 1000])
        super().__init__(world, name, rng)
        self.room = room
        self.first: int | None = None
        self.seen = 0

    @property
    def path(self) -> str:  # type: ignore[override]
        """Its room, and how much history it wants."""
        return f"/chat/{self.room.name}" + (f"?history={self.history}" if self.history else "")

    @property
    def joined(self) -> bool:  # type: ignore[override]
        """Whether it is in its room, or was."""
        return self.first is not None

    @property
    def expected(self) -> list[bytes]:
        """All that it must see, if it lives."""
        return [] if self.first is None else self.room.frames[self.first :]

    async def connect(self, good: bool) -> bool:
        """Shake hands, sometimes with the first messages right behind."""
        early = b""
        if self.history:
            self.do("history join")
        if self.rng.random() < 0.2:
            self.do("early message")
            early = self.message() + self.message()
        return await self.shake_hands(early)

    def message(self, *, fragments: int = 1) -> bytes:
        """Return the next message."""
        rng = self.rng
        opcode = BINARY if rng.random() < 0.2 else TEXT
        size = rng.choice([rng.randint(0, 100), rng.randint(0, 100), rng.randint(100, 1000), rng.randint(1000, 3900)])
        filler = rng.choice(["x", "y", "ü"])
        label = f"{self.name}:{len(self.attempted)}"
        payload = f"{label}:".encode() + (filler * size).encode()[: size // 2 * 2]
        message = Message(label, Kind.BINARY if opcode == BINARY else Kind.TEXT, payload)
        self.attempted.append(message)
        self.sent.append((self.room, message))
        return self.frames(opcode, payload, fragments)

    def some(self) -> bytes:
        """Return some pings and messages."""
        frames = []
        for _ in range(self.rng.randint(1, 4)):
            kind = self.rng.random()
            if kind < 0.4:
                frames.append(self.ping())
            elif kind < 0.7:
                frames.append(self.message(fragments=self.rng.randint(2, 5)))
            else:
                frames.append(self.message())
        return b"".join(frames)

    def harmless(self) -> Choices:
        """Return what also a good client does."""
        return [
            (6, self.publish),
            (2, self.publish_burst),
            (2, self.publish_fragmented),
            (1, self.send_ping),
            (1, self.publish_mixture),
        ]

    def arrears(self) -> str:
        """Return what it must still see."""
        seen, expected = self.seen, len(self.expected)
        return "" if seen == expected else f"saw {seen} of {expected}"

    def join(self, top: int, past: list[bytes], count: int) -> str:
        """Note where it joins, and what it is given of the past; return what is wrong with that."""
        self.first = top - len(past)
        self.note(f"joined at {top}")
        if past != self.room.frames[self.first : top] or top != len(self.room.frames):
            return f"{self.name} joined with a wrong history"
        return "" if len(past) == count else f"{self.name} joined with {len(past)} past, expected {count}"

    def _take_data(self, opcode: int, payload: bytes) -> None:
        frame = encode_frame(opcode, payload)
        assert self.first is not None, f"{self.name} got a publication before it joined"
        at = self.first + self.seen
        assert at < len(self.room.frames), f"{self.name} got a publication beyond the room's top"
        expected = self.room.frames[at]
        assert frame == expected, f"{self.name} got {frame[:40]!r} at offset {at + 1}, expected {expected[:40]!r}"
        self.seen += 1
        self.note(f"saw {at + 1}")

    def _is_due(self, rest: bytes) -> bool:
        return any(frame.startswith(rest) for frame in (PING_FRAME, *self.expected[self.seen : self.seen + 1]))
