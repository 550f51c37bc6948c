"""How fast a client may be, how many of one address may be there, and who pays when something is full.

Paces are measured on a virtual clock, so they are exact; a peer there is at the end of a bounded pipe, and waits, as
with TCP, while the server doesn't read.
"""

import contextlib
import ipaddress
import itertools
import json
import ssl
import struct
from collections.abc import AsyncIterator, Callable

import hypothesis.strategies as st
import pytest
import trio
import trustme
from hypothesis import example, given
from structlog.testing import capture_logs
from trio.testing import MockClock

from hubbub.config import Settings
from hubbub.connection.outbox import OutboxTotal
from hubbub.core.frames import BINARY, CLOSE, CONTINUATION, FIN, PING, TEXT
from hubbub.core.proxy_protocol import SIGNATURE
from hubbub.core.rate import Bucket
from hubbub.model.command import Publish
from hubbub.model.publication import Kind
from hubbub.node import Node
from hubbub.web.addresses import Addresses
from hubbub.web.front_door import HEARD_BEYOND_LIMIT
from peers import (
    Closed,
    HandshakeRefused,
    Peer,
    client_frame,
    close_payload,
    connect,
    handshake,
    open_peer,
    shake_hands,
)
from servers import UNHURRIED, Server, open_server, until_quiet
from structured import PATH, Client
from test_heartbeat import House, answer_pings, open_house

OFF_SECONDS = 0.25
"""What a pace on the virtual clock may be off."""


# -- the bucket


@given(
    rate=st.floats(0.1, 1e6),
    burst=st.floats(0.1, 1e6),
    takes=st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 100)), min_size=1, max_size=50),
)
def test_who_pauses_as_told_never_exceeds_the_rate(rate: float, burst: float, takes: list[tuple[float, float]]) -> None:
    """In any time from a take to the end of a pause: no more than the burst, and the rate times that time."""
    now = 1000.0
    bucket = Bucket(rate, burst, now)
    taken: list[tuple[float, float]] = []
    for amount, idle in takes:
        now += idle
        pause = bucket.take(amount, now)
        assert pause >= 0
        taken.append((now, amount))
        now += pause
        total = 0.0
        for at, earlier in reversed(taken):
            total += earlier
            assert total <= (burst + rate * (now - at)) * (1 + 1e-6) + 1e-3
        if not pause:
            assert bucket.overdrawn_since is None or bucket.overdrawn_since <= now


@given(
    rate=st.floats(0.1, 1e6),
    burst=st.floats(0.1, 1e6),
    # Of the burst, and in the time in which that flows in: what is much larger would hide what the lease lets through.
    takes=st.lists(
        st.tuples(st.floats(0, 0.25), st.sampled_from([0.0, 0.0, 0.0, 0.1, 2.0])),
        min_size=20,
        max_size=50,
    ),
)
@example(rate=1.0, burst=8.0, takes=[(0.125, 0.0), (0.125, 2.0), *[(0.125, 0.0)] * 20])
def test_a_lease_lets_through_an_eighth_more_and_one_thing(
    rate: float, burst: float, takes: list[tuple[float, float]]
) -> None:
    """The same, without a look at the clock each time: `spend`, and `settle` only where that is told."""
    now = 1000.0
    bucket = Bucket(rate, burst, now)
    taken: list[tuple[float, float]] = []
    for share, idle in takes:
        amount = share * burst
        now += idle * burst / rate
        taken.append((now, amount))
        if not bucket.spend(amount):
            pause = bucket.settle(now)
            assert pause >= 0
            now += pause
        total = 0.0
        for at, earlier in reversed(taken):
            total += earlier
            largest = max(amount for _, amount in taken)
            assert total <= (burst * 9 / 8 + largest + rate * (now - at)) * (1 + 1e-6) + 1e-3


@given(amounts=st.lists(st.floats(0, 10), max_size=100))
def test_what_fits_the_burst_costs_no_pause(amounts: list[float]) -> None:
    bucket = Bucket(1.0, 1000.0, 5.0)
    assert all(bucket.take(amount, 5.0) == 0 for amount in amounts)
    assert bucket.overdrawn_since is None


def test_overdrawn_since() -> None:
    """From the first overdraft to the first take that finds the bucket half full."""
    bucket = Bucket(rate=10.0, burst=20.0, now=100.0)
    assert bucket.take(20, 100.0) == 0
    assert bucket.overdrawn_since is None
    assert bucket.take(5, 100.0) == 0.5
    assert bucket.overdrawn_since == 100.0
    assert bucket.take(5, 101.0) == 0  # nothing owed, but it wasn't half full
    assert bucket.overdrawn_since == 100.0
    assert bucket.take(1, 101.9) == 0
    assert bucket.overdrawn_since == 100.0
    assert bucket.take(1, 102.25) == 0  # 11.5 tokens: more than half of 20
    assert bucket.overdrawn_since is None
    assert bucket.take(100, 102.25) == pytest.approx(8.95)  # a large thing is paid for by the pause after it
    assert bucket.overdrawn_since == 102.25
    assert bucket.take(0, 1000.0) == 0
    assert bucket.overdrawn_since is None


# -- publications, on a virtual clock

HUNDRED: dict[str, object] = {"publications_per_second_max": 100, "publications_burst_max": 50}
SLOW_BYTES: dict[str, object] = {"publication_bytes_per_second_max": 256, "publication_bytes_burst_max": 256}
NO_STALL: dict[str, object] = {"write_stall_seconds_max": 1000.0}
PATIENT: dict[str, object] = {"ping_seconds": 10_000.0}


async def say(peer: Peer, texts: list[str]) -> None:
    """Say all of it as fast as the server reads; a test's clients have only 20 s for anything, so a piece at a time."""
    for text in texts:
        await peer.stream.send_all(client_frame(TEXT, text.encode()))


def figure(node: Node, series: str) -> float:
    """What /metrics says."""
    (line,) = (line for line in node.metrics.text().decode().splitlines() if line.startswith(series + " "))
    return float(line.removeprefix(series))


async def pace(house: House, peer: Peer, texts: list[str]) -> float:
    """Let the peer say it all, check that it comes back complete and in order; return how long that took."""
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say, peer, texts)
        assert await peer.receive_texts(len(texts)) == texts
    return trio.current_time() - begin


async def test_over_the_rate_reading_pauses(autojump_clock: MockClock) -> None:
    async with open_house(0, **PATIENT, **HUNDRED) as house:
        peer, _ = await house.connect()
        seconds = await pace(house, peer, [f"message {number}" for number in range(550)])
        assert seconds == pytest.approx((550 - 50) / 100, abs=OFF_SECONDS)
        assert figure(house.node, "hubbub_rate_pauses_total") > 0


async def test_within_the_rate_nothing_pauses(autojump_clock: MockClock) -> None:
    limits: dict[str, object] = {
        "publications_per_second_max": 100,
        "publications_burst_max": 50,
        "rate_seconds_max": 5.0,
    }
    async with open_house(0, **PATIENT, **limits) as house:
        peer, _ = await house.connect()
        for _ in range(20):
            assert await pace(house, peer, [str(number) for number in range(50)]) <= OFF_SECONDS
            await trio.sleep(0.5)
        assert trio.current_time() < 20 * (0.5 + OFF_SECONDS)


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
async def test_a_fuller_room_has_slower_talkers(autojump_clock: MockClock) -> None:
    """200 in a room with rate_occupancy = 100: each publication counts twice."""
    limits: dict[str, object] = {
        "publications_per_second_max": 100,
        "publications_burst_max": 50,
        "rate_occupancy": 100,
    }
    async with open_house(0, **PATIENT, **limits) as house:
        peer, _ = await house.connect()
        for _ in range(199):
            other, _ = await house.connect()
            house.connections.start_soon(answer_pings, other)
        seconds = await pace(house, peer, [f"message {number}" for number in range(125)])
        assert seconds == pytest.approx((2 * 125 - 50) / 100, abs=OFF_SECONDS)


async def test_bytes_have_a_rate_of_their_own(autojump_clock: MockClock) -> None:
    """However much is read at once: it is paid for before anything else is read."""
    limits: dict[str, object] = {"publication_bytes_per_second_max": 10_000, "publication_bytes_burst_max": 10_000}
    async with open_house(0, **PATIENT, **limits) as house:
        peer, _ = await house.connect()
        seconds = await pace(house, peer, [f"{number:01000}" for number in range(60)])
        seconds += await pace(house, peer, ["and this, too"])
        assert seconds == pytest.approx((60 - 10) / 10, abs=OFF_SECONDS)


async def test_answers_count_by_their_size(autojump_clock: MockClock) -> None:
    """As much as the largest message may hold is as a publication: what is asked for again and again isn't free."""
    limits: dict[str, object] = {"allow_history": "anonymous", "message_bytes_max": 1000}
    async with open_house(0, **PATIENT, **HUNDRED, **limits) as house:
        for _ in range(100):
            await house.node.inbox.put(Publish("room", json.dumps("x" * 900).encode(), Kind.JSON))
        peer, _ = await house.connect(PATH, capacity=2**20)
        client = Client(peer)
        await client.connect()
        for limit in (0, 100):
            await trio.sleep(1)  # the burst is there again
            before, begin = len("".join(client.frames)), trio.current_time()
            for _ in range(20):
                answer = await client.ask("history", channel="room", limit=limit)
                assert len(answer.get("publications", [])) == limit
            answered = (len("".join(client.frames)) - before) / 1000
            assert answered >= 20 * limit * 900 / 1000
            owed = max(0.0, (20 + answered - 50) / 100)
            # The last answers haven't been paid for yet, nor had the first when what flows in was last counted.
            assert owed - 3 * answered / 20 / 100 - OFF_SECONDS <= trio.current_time() - begin <= owed + OFF_SECONDS


async def test_fragments_count_as_publications(autojump_clock: MockClock) -> None:
    """A message in 50 frames is 50: each costs as much as a message in a small room."""
    async with open_house(0, **PATIENT, **HUNDRED) as house:
        peer, _ = await house.connect()
        pieces = [client_frame(TEXT, b"x", fin=False), *(client_frame(0, b"x", fin=False) for _ in range(48))]
        message = b"".join((*pieces, client_frame(0, b"x")))
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def say_it_all() -> None:
                for _ in range(10):
                    await peer.stream.send_all(message)

            nursery.start_soon(say_it_all)
            assert await peer.receive_texts(10) == [50 * "x"] * 10
        assert trio.current_time() - begin == pytest.approx((10 * 50 - 50) / 100, abs=OFF_SECONDS)


async def test_too_fast_for_too_long(autojump_clock: MockClock) -> None:
    """1008, after rate_seconds_max of being over the rates without a rest; what was read before is published."""
    limits: dict[str, object] = {
        "publications_per_second_max": 100,
        "publications_burst_max": 50,
        "rate_seconds_max": 3.0,
    }
    async with open_house(0, **PATIENT, **limits) as house:
        peer, _ = await house.connect()
        async with trio.open_nursery() as nursery:

            async def talk() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    await say(peer, [str(number) for number in range(100_000)])

            await trio.sleep(1)
            begin = trio.current_time()
            nursery.start_soon(talk)
            said = []
            while True:
                first, payload = await peer.receive_frame()
                if first == FIN | CLOSE:
                    break
                said.append(payload.decode())
            nursery.cancel_scope.cancel()
        assert payload == close_payload(1008, "too many messages")
        assert trio.current_time() - begin == pytest.approx(3.0, abs=OFF_SECONDS)
        assert said == [str(number) for number in range(len(said))]
        tolerance = OFF_SECONDS * 100
        # The rest of what was being handed over when time was up comes at once.
        assert 50 + 3 * 100 - tolerance <= len(said) <= 50 + 3 * 100 + tolerance + Settings().frames_at_once_max
        await trio.sleep(3)
        assert house.ended("too_fast") == 1


async def test_who_was_too_fast_is_let_go_when_it_answers(autojump_clock: MockClock) -> None:
    """However long the last pause would have been: it doesn't wait for that to read the peer's Close."""
    limits: dict[str, object] = {
        "publication_bytes_per_second_max": 256,
        "publication_bytes_burst_max": 256,
        "rate_seconds_max": 1.0,
    }
    async with open_house(0, **PATIENT, **limits, close_seconds_max=60.0) as house:
        await trio.sleep(1)
        peer, _ = await house.connect(capacity=2**16)
        await peer.send("x" * 1000)
        await trio.sleep(3.0)  # the pause is over, but nothing is saved up
        await peer.send("x" * 10_000)
        _, closed = await peer.receive_until_closed()
        answered_at = trio.current_time()
        assert closed.code == 1008
        while house.ended("too_fast") == 0:
            await trio.sleep(0.1)
        assert trio.current_time() - answered_at < 2


@contextlib.asynccontextmanager
async def paused_peer(**limits: object) -> AsyncIterator[tuple[House, Peer, Callable[[], None]]]:
    """A peer that has said so much that nothing more is read from it for a minute; and how it vanishes."""
    async with open_house(0, **{**SLOW_BYTES, **limits}) as house:
        peer, stream = await house.connect()
        await peer.send("x" * 15_360)
        assert len(str(await peer.receive())) == 15_360
        yield house, peer, stream.reset


async def test_a_paused_peer_is_told_of_the_end_at_once(autojump_clock: MockClock) -> None:
    async with paused_peer(**PATIENT) as (house, peer, _):
        begin = trio.current_time()
        await house.node.drain()
        with pytest.raises(Closed) as closed:
            await peer.receive()
        assert closed.value.code == 1001
        assert trio.current_time() - begin < 1
        await until_quiet(house.node)
        assert trio.current_time() - begin < 2


async def test_who_pauses_twice_is_told_of_the_end_at_once(autojump_clock: MockClock) -> None:
    """A message in fragments pauses in one task, the fragment behind it in another: the end cuts both short."""
    one_a_second = {"publications_per_second_max": 1, "publications_burst_max": 1}
    async with open_house(0, **{**SLOW_BYTES, **PATIENT, **one_a_second}) as house:
        peer, _ = await house.connect()
        await peer.send_raw(client_frame(TEXT, b"x" * 4_096, fin=False) + client_frame(CONTINUATION, b"x" * 4_096))
        assert len(str(await peer.receive())) == 8_192
        await peer.send_frame(TEXT, b"the beginning of another", fin=False)
        (connection,) = house.node.connections
        while connection.session.handing_over < 2:
            await trio.sleep(0.01)
        begin = trio.current_time()
        await house.node.drain()
        _, closed = await peer.receive_until_closed()
        assert closed.code == 1001
        assert trio.current_time() - begin < 1
        await until_quiet(house.node)


async def test_a_paused_peer_that_vanishes(autojump_clock: MockClock) -> None:
    """It is noticed when anything is sent to it, not only when it's read again."""
    async with paused_peer(**PATIENT) as (house, _, vanish):
        talker, _ = await house.connect()
        begin = trio.current_time()
        vanish()
        await talker.send("anybody there?")
        assert await talker.receive() == "anybody there?"
        while house.ended("peer_reset") == 0:
            await trio.sleep(0.1)
        assert trio.current_time() - begin < 1


async def test_a_paused_peer_isnt_blamed_for_its_silence(autojump_clock: MockClock) -> None:
    """Its pongs are unread, for far longer than a pong may take."""
    async with paused_peer() as (house, peer, _):
        house.connections.start_soon(answer_pings, peer)
        await trio.sleep(50)
        assert len(house.node.connections) == 1
        await trio.sleep(100)  # and when the pause is over, it goes on as before
        assert len(house.node.connections) == 1
        assert house.ended("no_pong") == 0


async def test_control_frames_have_a_rate(autojump_clock: MockClock) -> None:
    async with open_house(0, **PATIENT, control_frames_per_second_max=10) as house:
        peer, _ = await house.connect()
        for _ in range(100):  # 10 a second, for ten seconds: allowed
            await peer.send_frame(PING, b"hello")
            await peer.receive_frame()
            await trio.sleep(0.1)
        await trio.sleep(1)
        await peer.send_raw(client_frame(PING, b"hello") * 10)
        for _ in range(10):
            assert (await peer.receive_frame())[1] == b"hello"
        await peer.send_raw(client_frame(PING, b"hello") * 5)
        with pytest.raises(Closed) as closed:
            await peer.receive()
        assert (closed.value.code, closed.value.reason) == (1008, "too many control frames")


async def test_who_goes_on_after_a_refusal_is_read_no_more(autojump_clock: MockClock) -> None:
    """Up to linger_bytes_max and what came with that; then its TCP waits, until the close deadline."""
    limits: dict[str, object] = {"linger_bytes_max": 20_000, "message_bytes_max": 1000, "close_seconds_max": 60.0}
    async with open_house(0, **{**UNHURRIED, **PATIENT, **NO_STALL, **limits}) as house:
        _, stream = await house.connect(capacity=4096)
        stream.stall()  # or the Close would be out, and somebody else would read on
        await stream.send_all(client_frame(TEXT, b"x" * 1001))
        sent, frame = 0, client_frame(TEXT, b"y" * 100)
        with trio.move_on_after(30):
            while sent < 1_000_000:
                await stream.send_all(frame)
                sent += len(frame)
        assert 20_000 <= sent <= 20_000 + 3 * 4096  # a read, and the pipe
        assert len(house.node.connections) == 1
        await trio.sleep(60)
        assert len(house.node.connections) == 0


@pytest.mark.parametrize("commands", [16, 64])
async def test_a_segment_of_tiny_messages_is_no_privilege(commands: int, autojump_clock: MockClock) -> None:
    """What another says at the same time is published among them, not behind all of them."""
    limits: dict[str, object] = {**UNHURRIED, **PATIENT, "frames_at_once_max": commands}
    async with open_house(0, **limits) as house:
        greedy, _ = await house.connect(capacity=64 * 1024)
        modest, _ = await house.connect()
        listener, _ = await house.connect(capacity=2**20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(greedy.send_raw, client_frame(BINARY, b"", mask=bytes(4)) * 10_000)
            nursery.start_soon(modest.send, "me too")
            before = 0
            while await listener.receive() != "me too":
                before += 1
        assert before <= 10 * commands


# -- who pays when something is full


async def test_subscribers_max() -> None:
    async with open_server(subscribers_max=1) as server, open_peer(server.port, "/chat/other"):
        async with open_peer(server.port):
            with pytest.raises(HandshakeRefused) as refused:
                async with open_peer(server.port):
                    pytest.fail("the room is full")
            assert refused.value.status == 503
            assert b"the room has subscribers_max subscribers already" in refused.value.response
            assert figure(server.node, 'hubbub_commands_refused_total{reason="room_full"}') == 1
        await trio.sleep(0.1)
        async with open_peer(server.port) as peer:  # the one has left
            await talks(peer)


async def test_the_fullest_outbox_is_evicted_not_the_newcomer(autojump_clock: MockClock) -> None:
    limits: dict[str, object] = {
        **UNHURRIED,
        **PATIENT,
        "outboxes_bytes_max": 50_000,
        "write_stall_seconds_max": 1000.0,
    }
    async with open_house(0, **limits) as house:
        full, full_side = await house.connect("/chat/one", capacity=512)
        full_side.stall()
        talker, _ = await house.connect("/chat/one")
        for _ in range(4):
            await talker.send("x" * 10_000)
            await talker.receive()
        newcomer, side = await house.connect("/chat/two", capacity=512)
        side.stall()
        for _ in range(2):
            await newcomer.send("y" * 8_000)
            await trio.sleep(0.1)
        ends = {connection.ended for connection in house.node.connections}
        assert len(house.node.connections) == 3
        assert [end.value for end in ends if end] == ["slow_consumer"]
        side.resume()
        for _ in range(2):
            assert await newcomer.receive() == "y" * 8_000
        full_side.resume()
        messages, closed = await full.receive_until_closed()
        assert set(messages) <= {"x" * 10_000}
        assert closed.code in (1013, 1006)


async def test_who_is_evicted_and_still_holds_the_most_is_cut_off(autojump_clock: MockClock) -> None:
    """What such a one has in hand, the frame that has begun, may be more than any other holds: nobody goes for that."""
    total = 80_000
    limits: dict[str, object] = {**UNHURRIED, **PATIENT, **NO_STALL, "outboxes_bytes_max": total}
    async with open_house(0, **limits, close_seconds_max=1000.0) as house:
        peers = []
        for number, size in enumerate((60_000, 15_000, 15_000, 15_000, 15_000)):
            peer, side = await house.connect(f"/chat/{number}", capacity=512)
            peers.append(peer)  # kept, for its connection to stay
            await peer.stream.send_all(client_frame(TEXT, b"x" * size, mask=bytes(4)))
            side.stall()
            await trio.sleep(0.1)
            assert house.node.outboxes.bytes <= total + 15_000
        assert len(house.node.connections) == 4  # the large one was evicted, and then cut off
        assert [connection.ended for connection in house.node.connections] == [None] * 4


async def test_room_is_seldom_made(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time some is to spare, a thirty-second: to look at all connections for each piece would take for ever."""
    total, added, scans = 16_000, 0, list[int]()
    make_room, add = Node.make_room, OutboxTotal.add

    def counted(node: Node) -> None:
        scans.append(added)
        make_room(node)

    def watched(outboxes: OutboxTotal, count: int) -> None:
        nonlocal added
        added += max(0, count)
        add(outboxes, count)

    monkeypatch.setattr(Node, "make_room", counted)
    monkeypatch.setattr(OutboxTotal, "add", watched)
    limits: dict[str, object] = {**UNHURRIED, **PATIENT, **NO_STALL, "outboxes_bytes_max": total}
    async with open_house(0, **limits, close_seconds_max=1000.0) as house:
        peers = []  # kept, for their connections to stay
        for _ in range(60):
            peer, side = await house.connect("/chat/room", capacity=512)
            peers.append(peer)
            side.stall()
        while len(house.node.connections) > 30:
            await house.node.inbox.put(Publish("room", b"x" * 20, Kind.TEXT))
            await trio.sleep(0.1)
    assert len(scans) > 1
    assert min(after - before for before, after in itertools.pairwise(scans)) >= total / 32


@pytest.mark.parametrize("length", [100, 30_000], ids=["many small", "few large"])
async def test_all_outboxes_together_hold_no_more_at_any_moment(
    length: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within one hand-out: who is evicted or cut off for the room of others lets go at once."""
    total = 1_000_000
    worst: list[int] = []
    add = OutboxTotal.add

    def watched(outboxes: OutboxTotal, count: int) -> None:
        add(outboxes, count)
        worst.append(outboxes.bytes)

    monkeypatch.setattr(OutboxTotal, "add", watched)
    limits: dict[str, object] = {**UNHURRIED, **PATIENT, **NO_STALL, "outboxes_bytes_max": total}
    async with open_house(0, **limits, close_seconds_max=1000.0) as house:
        peers = []  # kept, for their connections to stay
        for _ in range(30):
            peer, side = await house.connect("/chat/room", capacity=512)
            peers.append(peer)
            side.stall()
        for _ in range(10):
            for _ in range(150_000 // length):
                await house.node.inbox.put(Publish("room", b"x" * length, Kind.TEXT))
            await trio.sleep(0.1)
    assert total / 2 < max(worst) <= total


async def test_the_longest_quiet_history_goes_first() -> None:
    async with open_server(histories_bytes_max=25_000) as server:

        async def keeps(room: str) -> int:
            async with open_peer(server.port, f"/chat/{room}?history=100") as peer:
                await peer.send("end")
                count = 0
                while await peer.receive() != "end":
                    count += 1
                return count

        async def put(room: str) -> None:
            async with open_peer(server.port, f"/chat/{room}") as peer:
                await peer.send("x" * 10_000)
                await peer.receive()

        for room in ("a", "b", "a", "c"):  # b is the longest quiet when c comes: 4 times 10 kB is too much
            await put(room)
        assert server.node.engine.statistics().history_bytes <= 25_000
        kept = [room for room in "abc" if server.node.engine.recent(room, 100, trio.current_time()).publications]
        assert kept == ["c"]  # b went first, then a, which alone has 20 kB
        await put("b")
        assert [await keeps(room) for room in "cb"] == [1, 1]


# -- how many connections one address may have


def test_addresses() -> None:
    addresses = Addresses()
    assert addresses.enter("192.0.2.1") == ("192.0.2.1", 1)
    assert addresses.enter("192.0.2.2") == ("192.0.2.2", 1)
    assert addresses.enter("192.0.2.1") == ("192.0.2.1", 2)
    assert addresses.enter("2001:db8::1") == ("2001:db8::/64", 1)
    assert addresses.enter("2001:db8::ffff:ffff:ffff:ffff") == ("2001:db8::/64", 2)
    assert addresses.enter("2001:db8:0:1::1") == ("2001:db8:0:1::/64", 1)
    assert addresses.enter("somewhere") == ("somewhere", 1)
    assert len(addresses) == 5
    for key in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "2001:db8::/64", "2001:db8::/64", "2001:db8:0:1::/64"):
        addresses.leave(key)
    assert len(addresses) == 1


@contextlib.asynccontextmanager
async def open_dialled(port: int, before: bytes, request: bytes) -> AsyncIterator[Peer]:
    """Connect, send `before`, shake hands."""
    stream = await connect(port)
    try:
        if before:
            await stream.send_all(before)
        yield await shake_hands(stream, request)
    finally:
        await trio.aclose_forcefully(stream)


def named(client: str) -> bytes:
    """Return an upgrade request as a reverse proxy passes it on."""
    return handshake(headers=(("X-Forwarded-For", client),))


async def look_in(stream: trio.SocketStream, client: str) -> None:
    """Ask for something, as a reverse proxy does for that client; the connection may go on."""
    await stream.send_all(f"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: {client}\r\n\r\n".encode())
    answer = b""
    while not answer.endswith(b"ok\n"):
        answer += await stream.receive_some()
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_connections_per_address() -> None:
    """Each client that the proxy names has its own limit; a connection that is closed is free again."""
    limits: dict[str, object] = {"trusted_proxies": ["127.0.0.1"], "connections_per_address_max": 2}
    async with open_server(tls=None, **limits) as server, contextlib.AsyncExitStack() as stack:
        first = contextlib.AsyncExitStack()
        await first.enter_async_context(open_dialled(server.port, b"", named("192.0.2.1")))
        await stack.enter_async_context(open_dialled(server.port, b"", named("192.0.2.1")))
        for _ in range(HEARD_BEYOND_LIMIT + 2):
            with pytest.raises(HandshakeRefused) as refused:
                await stack.enter_async_context(open_dialled(server.port, b"", named("192.0.2.1")))
            assert refused.value.status == 429
            assert b"your address has connections_per_address_max = 2 already" in refused.value.response
        for other in ("192.0.2.2", "2001:db8::1", "2001:db8::2", "192.0.2.2"):
            await stack.enter_async_context(open_dialled(server.port, b"", named(other)))
        with pytest.raises(HandshakeRefused):  # the same /64
            await stack.enter_async_context(open_dialled(server.port, b"", named("2001:db8::3")))
        await first.aclose()
        with trio.fail_after(5):
            while True:
                with contextlib.suppress(HandshakeRefused):
                    await stack.enter_async_context(open_dialled(server.port, b"", named("192.0.2.1")))
                    break
                await trio.sleep(0.02)
        for _ in range(5):  # the proxy itself, and this machine, have no limit
            await stack.enter_async_context(open_dialled(server.port, b"", handshake()))
        await stack.aclose()
        await until_quiet(server.node)
        assert server.node.front_door.addresses == 0


async def test_each_request_of_a_proxys_connection_is_its_own_clients() -> None:
    """Proxies keep connections, and send requests of many over each: whose was the first doesn't matter."""
    limits: dict[str, object] = {"trusted_proxies": ["127.0.0.1"], "connections_per_address_max": 2}
    async with open_server(tls=None, **limits) as server, contextlib.AsyncExitStack() as stack:
        door, streams = server.node.front_door, list[trio.SocketStream]()
        for number in range(6):
            stream = await connect(server.port)
            stack.push_async_callback(trio.aclose_forcefully, stream)
            streams.append(stream)
            await look_in(stream, f"198.51.100.{number // 2}")
        assert door.addresses == 0, "between requests they are nobody's"
        with capture_logs() as logged:
            await streams.pop().send_all(b"nonsense\r\n\r\n")
            while not logged:
                await trio.sleep(0.01)
        assert logged[0]["peer"] == "127.0.0.1", "who said that isn't known"
        peers = [await shake_hands(stream, named("203.0.113.9")) for stream in streams[:2]]
        for peer in peers:
            await talks(peer)
        with pytest.raises(HandshakeRefused) as refused:
            await shake_hands(streams[2], named("203.0.113.9"))
        assert refused.value.status == 429
        await talks(await shake_hands(streams[3], named("198.51.100.1")))
        await talks(await shake_hands(streams[4], handshake()))
        of_clients = sorted(connection.peer for connection in server.node.connections)
        assert of_clients == ["127.0.0.1", "198.51.100.1", "203.0.113.9", "203.0.113.9"]
        await stack.aclose()
        await until_quiet(server.node)
        assert door.addresses == 0


# -- the PROXY protocol

BEHIND_PROXY: dict[str, object] = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}
LOCAL_HEADER = SIGNATURE + b"\x20\x00\x00\x00"


def proxy_header(client: str) -> bytes:
    """Return a version 2 header for TCP over IPv4."""
    addresses = ipaddress.ip_address(client).packed + ipaddress.ip_address("10.0.0.1").packed
    return SIGNATURE + b"\x21\x11\x00\x0c" + addresses + struct.pack("!HH", 50_000, 443)


async def ends_unheard(stream: trio.SocketStream, seconds_max: float = 2.0) -> None:
    """See that the server ends the connection without a word, within that time."""
    with trio.fail_after(seconds_max), contextlib.suppress(trio.BrokenResourceError):
        assert await stream.receive_some() == b""


async def talks(peer: Peer) -> None:
    """See that it works."""
    await peer.send("hello")
    assert await peer.receive() == "hello"


def refusals(server: Server, limit: str) -> int:
    """Return how many were turned away for that."""
    prefix = f'hubbub_refusals_total{{limit="{limit}"}} '
    lines = server.node.metrics.text().decode().splitlines()
    return sum(int(float(line.removeprefix(prefix))) for line in lines if line.startswith(prefix))


async def test_clients_named_by_the_proxy_protocol() -> None:
    """They have the limit, as far as an answer and beyond, where nobody is heard any more."""
    limits: dict[str, object] = {**BEHIND_PROXY, "connections_per_address_max": 1}
    async with open_server(tls=None, **limits) as server, contextlib.AsyncExitStack() as stack:
        first = proxy_header("192.0.2.1")
        await talks(await stack.enter_async_context(open_dialled(server.port, first, handshake())))
        streams = []
        for _ in range(HEARD_BEYOND_LIMIT):
            streams.append(await connect(server.port))
            await streams[-1].send_all(first)
        while server.node.front_door.serving < 1 + HEARD_BEYOND_LIMIT:
            await trio.sleep(0.01)
        unheard = await connect(server.port)
        await unheard.send_all(first)
        await ends_unheard(unheard)
        with pytest.raises(HandshakeRefused) as refused:
            await shake_hands(streams[0], handshake())
        assert refused.value.status == 429
        await talks(await stack.enter_async_context(open_dialled(server.port, proxy_header("192.0.2.2"), handshake())))
        for _ in range(3):  # the proxy's own connections have no limit
            await talks(await stack.enter_async_context(open_dialled(server.port, LOCAL_HEADER, handshake())))
        for stream in (*streams, unheard):
            await trio.aclose_forcefully(stream)
        await stack.aclose()
        await until_quiet(server.node)
        assert server.node.front_door.addresses == 0
        assert refusals(server, "connections_per_address_max") == 2


@pytest.mark.parametrize(
    "data",
    [handshake(), b"\x16\x03\x01", b"PROXY TCP4 192.0.2.1 10.0.0.1 50000 443\r\n" + handshake(), SIGNATURE + b"\x11"],
    ids=["no header", "TLS", "version 1", "a wrong version"],
)
async def test_without_a_good_header_nobody_is_heard(data: bytes) -> None:
    async with open_server(tls=None, **BEHIND_PROXY) as server:
        stream = await connect(server.port)
        await stream.send_all(data)
        await ends_unheard(stream)
        await trio.aclose_forcefully(stream)
        assert refusals(server, "proxy_protocol") == 1


async def test_a_header_of_somebody_else_isnt_read() -> None:
    async with open_server(proxy_protocol=True, trusted_proxies=["10.0.0.1"]) as server:
        stream = await connect(server.port)
        await ends_unheard(stream)
        await trio.aclose_forcefully(stream)
        assert refusals(server, "proxy_protocol") == 1


async def test_a_header_split_anywhere() -> None:
    """And one that comes together with the head, and one a byte at a time."""
    async with open_server(tls=None, **BEHIND_PROXY) as server:
        header, request = proxy_header("192.0.2.1"), handshake()

        async def visit(pieces: list[bytes]) -> None:
            stream = await connect(server.port)
            for piece in pieces[:-1]:
                await stream.send_all(piece)
                await trio.sleep(0.01)
            await talks(await shake_hands(stream, pieces[-1]))
            await trio.aclose_forcefully(stream)

        async with trio.open_nursery() as nursery:
            for at in range(1, len(header)):
                nursery.start_soon(visit, [header[:at], header[at:] + request])
            nursery.start_soon(visit, [header + request])
            nursery.start_soon(visit, [bytes((byte,)) for byte in header] + [request])
        assert refusals(server, "proxy_protocol") == 0


async def test_tls_behind_the_header() -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with open_server(tls=server_context, **BEHIND_PROXY) as server:
        stream = await connect(server.port)
        header = proxy_header("192.0.2.1")
        await stream.send_all(header[:20])
        await trio.sleep(0.05)
        await stream.send_all(header[20:])
        tls = trio.SSLStream(stream, client_context, server_hostname="localhost", https_compatible=True)
        await talks(await shake_hands(tls, handshake()))
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("data", [b"", SIGNATURE, proxy_header("192.0.2.1")[:-1]], ids=["nothing", "some", "most"])
async def test_a_header_has_a_deadline(data: bytes) -> None:
    async with open_server(tls=None, **BEHIND_PROXY, head_seconds_max=0.3) as server:
        stream = await connect(server.port)
        if data:
            await stream.send_all(data)
        begin = trio.current_time()
        await ends_unheard(stream)
        assert trio.current_time() - begin > 0.2
        await trio.aclose_forcefully(stream)
