"""The plain dialect over real sockets: what the article shows, and a little more."""

import trio
from peers import open_peer
from servers import open_server, until_quiet


async def test_everyone_in_the_room_receives_it_the_sender_included() -> None:
    """Two clients, one message each: both see both, in one order."""
    async with open_server() as server, open_peer(server.port) as one, open_peer(server.port) as two:
        await one.send("hello")
        assert await one.receive() == "hello"
        assert await two.receive() == "hello"
        await two.send("wörld")
        assert await one.receive() == "wörld"
        assert await two.receive() == "wörld"
