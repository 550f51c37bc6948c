"""The poller: what comes is taken at once or reaches the task that waits: each byte once, in order, then the end."""

import contextlib
import errno
import random
import socket
from collections.abc import AsyncIterator, Callable

import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import given, settings

from bounded_pipes import PipeStream, PipeTransport, make_pipe, make_watch
from hubbub.connection.poller import LOOK_BYTES, LOOKS_PER_COUNT, READABLE, RECEIVE_BYTES, Poller, open_poller
from hubbub.connection.transport import TcpTransport
from peers import connect, handshake, open_peer, shake_hands
from servers import open_server


class Rig:
    """A watched socket, its peer, and what was taken."""

    def __init__(self, poller: Poller) -> None:
        ours, self.peer = socket.socketpair()
        for end in (ours, self.peer):
            end.setblocking(False)
        self.poller = poller
        self.transport = TcpTransport(ours, poller)
        self.taken: list[bytes] = []
        self.takes = True
        self.transport.set_taker(self.take)

    def take(self, data: bytes) -> bool:
        """Take what comes, or not."""
        if self.takes:
            self.taken.append(data)
        return self.takes


@contextlib.asynccontextmanager
async def open_rig() -> AsyncIterator[Rig]:
    """Run a poller with one socket."""
    with open_poller() as poller:
        assert poller is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            rig = Rig(poller)
            with rig.peer, trio.fail_after(5):
                yield rig
                rig.transport.close_forcefully()
            nursery.cancel_scope.cancel()


async def receive(rig: Rig, got: list[bytes]) -> None:
    """Be the task that receives, to the end."""
    while data := await rig.transport.receive_some(RECEIVE_BYTES):
        got.append(data)
    got.append(b"")


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    while not condition():
        await trio.sleep(0.001)


async def test_what_can_be_taken_wakes_nobody() -> None:
    """What `take` deals with never reaches the task; what it doesn't, does, untouched."""
    async with open_rig() as rig, trio.open_nursery() as nursery:
        got: list[bytes] = []
        nursery.start_soon(receive, rig, got)
        await trio.testing.wait_all_tasks_blocked()
        rig.peer.send(b"one")
        await until(lambda: rig.taken)
        rig.takes = False
        rig.peer.send(b"two")
        await until(lambda: got)
        assert (rig.taken, got) == ([b"one"], [b"two"])
        nursery.cancel_scope.cancel()


async def test_nothing_is_taken_while_the_task_is_busy() -> None:
    """What comes meanwhile is there when the task asks again, though its edge was told only once."""
    async with open_rig() as rig:
        rig.peer.send(b"first")
        await trio.sleep(0.01)
        rig.poller.look()
        assert await rig.transport.receive_some(100) == b"first"
        rig.peer.send(b"second")
        await trio.sleep(0.01)
        rig.poller.look()
        assert not rig.taken
        assert await rig.transport.receive_some(3) == b"sec"
        assert await rig.transport.receive_some(100) == b"ond"


async def test_who_looks_is_told_of_tasks_at_work() -> None:
    """From when a task is woken until it waits again, and no longer: then those who gather let it run."""
    async with open_rig() as rig, trio.open_nursery() as nursery:
        rig.takes = False
        got: list[bytes] = []
        nursery.start_soon(receive, rig, got)
        await trio.testing.wait_all_tasks_blocked()
        assert not rig.poller.look()
        rig.peer.send(b"one")
        await until(rig.poller.look)  # before the poller's own task has seen it, or after: it hasn't run yet
        assert not got
        await until(lambda: got)
        await trio.testing.wait_all_tasks_blocked()
        assert not rig.poller.look()
        nursery.cancel_scope.cancel()


async def test_who_has_been_closed_isnt_at_work() -> None:
    """A task that was woken, and whose socket was closed before it waited again, is no reason to let others run."""
    async with open_rig() as rig, trio.open_nursery() as nursery:
        rig.takes = False
        got: list[bytes] = []

        async def receive_once() -> None:
            got.append(await rig.transport.receive_some(100))

        nursery.start_soon(receive_once)
        await trio.testing.wait_all_tasks_blocked()
        rig.peer.send(b"one")
        await until(lambda: got)
        assert rig.poller.look()
        rig.transport.close_forcefully()
        assert not rig.poller.look()


class ToldOnce:
    """An epoll that tells of data, once, whatever it is; implements `hubbub.connection.poller.Epoll`."""

    def __init__(self) -> None:
        self._told = False

    def register(self, fd: int, eventmask: int, /) -> None:
        pass

    def poll(self, timeout: float, maxevents: int, /) -> list[tuple[int, int]]:
        told, self._told = self._told, True
        return [] if told else [(0, READABLE)]


async def test_an_end_that_is_told_as_data_is_the_end() -> None:
    """A kernel that looks at a socket while the end is coming in may see that there is something, and not yet what."""
    poller = Poller(ToldOnce(), trio.sleep_forever)
    inlet = poller.watch(0, lambda _: b"")
    inlet.take = lambda data: pytest.fail("there is nothing to take")
    got: list[bytes] = []

    async def receive() -> None:
        got.append(await inlet.receive_some(100))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        poller.look()
        await trio.testing.wait_all_tasks_blocked()
        assert got == [b""]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("size", [5, LOOK_BYTES, LOOK_BYTES + 5, RECEIVE_BYTES + 5])
async def test_the_end_is_told_behind_what_came_before(takes: bool, size: int) -> None:
    """Data and the end in one event: all of the data, then b''."""
    async with open_rig() as rig, trio.open_nursery() as nursery:
        rig.takes = takes
        got: list[bytes] = []
        nursery.start_soon(receive, rig, got)
        await trio.testing.wait_all_tasks_blocked()
        rig.peer.send(b"x" * size)
        rig.peer.shutdown(socket.SHUT_WR)
        await until(lambda: got and got[-1] == b"")
        assert b"".join(rig.taken + got) == b"x" * size
        assert await rig.transport.receive_some(1) == b"", "the end stays the end"


async def test_more_than_one_read() -> None:
    """A read that came back full isn't the last: the task goes on where `take` stopped."""
    async with open_rig() as rig, trio.open_nursery() as nursery:
        got: list[bytes] = []
        nursery.start_soon(receive, rig, got)
        await trio.testing.wait_all_tasks_blocked()
        sent = rig.peer.send(b"x" * (LOOK_BYTES + 5000))
        await until(lambda: sum(map(len, rig.taken + got)) == sent)
        assert rig.taken
        nursery.cancel_scope.cancel()


def connected_by_tcp() -> tuple[socket.socket, socket.socket]:
    """Return our end, not blocking, and the peer's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, peer


async def test_a_reset() -> None:
    """It is told as a broken connection, not as the end."""
    ours, peer = connected_by_tcp()
    with open_poller() as poller:
        assert poller is not None
        transport = TcpTransport(ours, poller)
        transport.set_taker(lambda data: True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poller.run)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            nursery.start_soon(_after_all_wait, peer.close)
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await transport.receive_some(100)
            transport.close_forcefully()
            nursery.cancel_scope.cancel()


async def _after_all_wait(act: Callable[[], None]) -> None:
    await trio.testing.wait_all_tasks_blocked()
    act()


async def test_urgent_data() -> None:
    """TCP cuts a read short at its urgent mark, though more is there, and no other edge will tell of that."""
    ours, peer = connected_by_tcp()
    with open_poller() as poller:
        assert poller is not None
        transport, got = TcpTransport(ours, poller), bytearray()

        async def read() -> None:
            while data := await transport.receive_some(RECEIVE_BYTES):
                got.extend(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            peer.send(b"before")
            peer.send(b"!", socket.MSG_OOB)
            peer.send(b"behind")
            nursery.start_soon(poller.run)
            with trio.fail_after(5):
                await until(lambda: got == b"beforebehind")
            nursery.cancel_scope.cancel()
        transport.close_forcefully()
        peer.close()


async def test_who_waits_for_something_else_isnt_at_work_for_ever() -> None:
    """A task that was woken and pauses, for its rate perhaps, is soon no reason any more for others to run."""
    async with open_rig() as rig, trio.open_nursery() as nursery:
        rig.takes = False

        async def receive_and_pause() -> None:
            await rig.transport.receive_some(100)
            await trio.sleep_forever()

        nursery.start_soon(receive_and_pause)
        await trio.testing.wait_all_tasks_blocked()
        rig.peer.send(b"one")
        await until(rig.poller.look)
        looks = [rig.poller.look() for _ in range(LOOKS_PER_COUNT + 1)]
        assert looks[0]
        assert not looks[-1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("error", [OSError("no"), MemoryError(), ValueError("a fault in what takes")])
async def test_a_failure_is_that_connections_alone(error: Exception) -> None:
    """Whatever fails in reading, or taking, for one: its task is told, the poller goes on."""
    async with open_rig() as rig:
        other = Rig(rig.poller)

        def fail(_: bytes) -> bool:
            raise error

        rig.transport.set_taker(fail)
        with pytest.RaisesGroup(trio.BrokenResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.transport.receive_some, 100)
                await trio.testing.wait_all_tasks_blocked()
                rig.peer.send(b"one")
        other.takes = False
        with other.peer:
            other.peer.send(b"two")
            assert await other.transport.receive_some(100) == b"two"
        other.transport.close_forcefully()


async def test_a_socket_that_cant_be_watched_is_read_by_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fs.epoll.max_user_watches`: neither that connection nor the others notice."""

    def watch_no_more(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with open_server() as server, open_peer(server.port) as before:
        monkeypatch.setattr(Poller, "watch", watch_no_more)
        async with open_peer(server.port) as after:
            for peer in (before, after):
                await peer.send("still here")
                assert await before.receive() == await after.receive() == "still here"


async def test_cancelled_waits_lose_nothing() -> None:
    """What comes after a wait that was cancelled is there for the next one."""
    async with open_rig() as rig:
        rig.takes = False
        with trio.move_on_after(0.01):
            await rig.transport.receive_some(100)
        rig.peer.send(b"later")
        assert await rig.transport.receive_some(100) == b"later"


async def test_closing_wakes_the_task() -> None:
    """And what the kernel tells of a descriptor that is somebody else's by now reaches nobody."""
    async with open_rig() as rig:
        with pytest.RaisesGroup(trio.BrokenResourceError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.transport.receive_some, 100)
                await trio.testing.wait_all_tasks_blocked()
                rig.transport.close_forcefully()
        rig.transport.close_forcefully()
        with pytest.raises(trio.BrokenResourceError):
            await rig.transport.receive_some(100)
        other = Rig(rig.poller)
        other.takes = False
        with other.peer:
            other.peer.send(b"mine")
            assert await other.transport.receive_some(100) == b"mine"
            assert not rig.taken
            other.transport.close_forcefully()


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 300), max_size=20))
def test_every_byte_once_and_in_order(seed: int, sizes: list[int]) -> None:
    """Taken or not, cut anywhere, and whenever the task is busy: nothing is lost, doubled or overtaken."""
    rng, received, sent = random.Random(seed), bytearray(), random.Random(seed).randbytes(sum(sizes))

    def take(data: bytes) -> bool:
        takes = rng.random() < 0.5
        if takes:
            received.extend(data)
        return takes

    async def read(transport: PipeTransport) -> None:
        while data := await transport.receive_some(rng.randint(1, 100)):
            received.extend(data)
            if rng.random() < 0.5:
                await trio.sleep(rng.random())

    async def write(stream: PipeStream) -> None:
        at = 0
        for size in sizes:
            await stream.send_all(sent[at : at + size])
            at += size
            if rng.random() < 0.5:
                await trio.sleep(rng.random())
        stream.end()

    async def main() -> None:
        watch = make_watch(rng)
        transport, stream = make_pipe(rng, 128, watch)
        transport.set_taker(take)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.poller.run)
            nursery.start_soon(write, stream)
            with trio.fail_after(1000):
                await read(transport)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert bytes(received) == sent


async def test_without_a_poller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no epoll, tasks wait by themselves, and a chat is a chat."""
    monkeypatch.delattr("select.epoll")
    async with open_server() as server:
        assert server.node.poller is None
        stream = await connect(server.port)
        peer = await shake_hands(stream, handshake())
        for number in range(3):
            await peer.send(f"message {number}")
        assert await peer.receive_texts(3) == [f"message {number}" for number in range(3)]
        await trio.aclose_forcefully(stream)
