"""The same server behind each of the three transports: TCP, TLS and the simulation's pipe."""

import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import trio
import trustme

from bounded_pipes import make_pipe, make_watch
from hubbub.config import Settings
from hubbub.node import Node, open_node
from peers import ByteStream, Peer, connect, handshake, shake_hands
from servers import QUICK, open_server

KINDS = ("tcp", "tls", "pipe")


class World(msgspec.Struct):
    """A node, and how to reach it."""

    node: Node
    dial: Callable[[], Awaitable[ByteStream]]

    async def open_peer(self, path: str = "/chat") -> Peer:
        """Return a WebSocket client."""
        return await shake_hands(await self.dial(), handshake(path))


@contextlib.asynccontextmanager
async def open_world(kind: str, **overrides: object) -> AsyncIterator[World]:
    """Run a node behind transports of that kind; small buffers, so that backlog comes soon."""
    if kind == "pipe":
        async with _open_pipe_world(**overrides) as world:
            yield world
        return
    authority = trustme.CA()
    server_context = None
    if kind == "tls":
        server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with open_server(tls=server_context, **overrides) as server, contextlib.AsyncExitStack() as dialled:

        async def dial() -> ByteStream:
            stream = await connect(server.port, receive_buffer=4096)
            dialled.push_async_callback(trio.aclose_forcefully, stream)
            if kind == "tcp":
                return stream
            return trio.SSLStream(stream, client_context, server_hostname="localhost", https_compatible=True)

        yield World(server.node, dial)


@contextlib.asynccontextmanager
async def _open_pipe_world(**overrides: object) -> AsyncIterator[World]:
    rng = random.Random(1)
    settings = Settings(**{**QUICK, **overrides})  # type: ignore[arg-type]
    watch = make_watch(rng)
    async with open_node(settings, random.Random(0), watch.poller) as (node, connections):

        async def dial() -> ByteStream:
            transport, stream = make_pipe(rng, watch=watch)
            connections.start_soon(node.front_door.serve, transport, "pipe", "localhost")
            return stream

        yield World(node, dial)
        connections.cancel_scope.cancel()
