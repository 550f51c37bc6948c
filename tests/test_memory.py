"""What a connection leaves behind: nothing, without the collector's help; and what it doesn't keep while idle."""

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
import trio
from wsproto.frame_protocol import FrameProtocol
from wsproto.handshake import H11Handshake

from hubbub.connection.connection import Connection
from peers import connect, handshake, open_peer, shake_hands
from servers import open_server, until_quiet
from structured import PATH

KINDS = (Connection, FrameProtocol, H11Handshake)
CONNECTIONS = 50


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Whatever goes, goes by reference counts."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def count() -> Counter[type]:
    """Return how many of what a connection is made of there are."""
    return Counter(kind for one in gc.get_objects() for kind in KINDS if type(one) is kind)


def spent_parts(connection: Connection) -> list[object]:
    """Return what nobody uses after the handshake, of the parts that other libraries hold."""
    websocket = connection._websocket
    assert websocket is not None
    parser = websocket._wsproto.connection
    assert parser is not None
    opened, closed = websocket._open_handshake, websocket._for_testing_peer_closed_connection
    return [websocket._wsproto.handshake, opened, closed, websocket._pings, parser._events]


@pytest.mark.usefixtures("no_collector")
async def test_idle_connections_keep_no_handshake() -> None:
    """One for all of them: some 3.4 KB less per idle connection."""
    async with open_server() as server:
        before = count()
        async with trio.open_nursery() as nursery:
            opened = trio.Event()
            peers = 0

            async def stay() -> None:
                nonlocal peers
                async with open_peer(server.port):
                    peers += 1
                    if peers == CONNECTIONS:
                        opened.set()
                    await trio.sleep_forever()

            for _ in range(CONNECTIONS):
                nursery.start_soon(stay)
            await opened.wait()
            while len(server.node.connections) < CONNECTIONS:
                await trio.sleep(0.01)
            await trio.sleep(0.1)
            grown = count() - before
            assert grown[Connection] == CONNECTIONS
            assert grown[H11Handshake] == 0
            shared = {tuple(map(id, spent_parts(connection))) for connection in server.node.connections}
            assert len(shared) == 1
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("ending", ["close", "eof", "reset"])
@pytest.mark.parametrize("path", ["/chat", PATH])
async def test_ended_connections_are_no_garbage(path: str, ending: str) -> None:
    """However they end, in either dialect: a long churn leaves the collector nothing to find."""
    async with open_server() as server:
        before = count()
        for _ in range(CONNECTIONS):
            stream = await connect(server.port)
            peer = await shake_hands(stream, handshake(path))
            await peer.send("{}" if path == "/chat" else '{"id":1,"connect":{}}')
            await peer.receive()
            if ending == "close":
                await peer.close()
            elif ending == "eof":
                await stream.send_eof()
            await trio.aclose_forcefully(stream)
        await until_quiet(server.node)
        del peer, stream
        with trio.move_on_after(5):  # the last tasks of the last one; garbage would stay, as nobody collects it
            while count() - before:
                await trio.sleep(0.05)
        assert count() - before == Counter()
