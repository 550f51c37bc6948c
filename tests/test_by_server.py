"""What the server does to connections for its back end: subscribe, unsubscribe, dismiss; and whose they are."""

from functools import partial
from typing import Any

import pytest
import trio

from hubbub.connection.connection import Connection
from hubbub.model.command import Answer, Command, Done, Publish, Refusal, Refused, Subscribed, Tell, Unsubscribe
from hubbub.model.end import Disconnect
from hubbub.model.publication import Kind, Position
from peers import Closed, open_peer
from servers import Server, open_server, until_quiet
from signing import SECRET, sign
from structured import Client, open_structured
from test_permissions import status_of


def connection_of(server: Server, client: Client) -> Connection:
    """Return the server's side of a client."""
    (connection,) = (one for one in server.node.connections if one.member.client == client.client)
    return connection


async def carry_out(server: Server, command: Command, answers: list[Answer]) -> Answer:
    """Have the hub carry out a command whose answer goes into `answers`."""
    await server.node.inbox.put(command)
    while not answers:
        await trio.sleep(0.001)
    return answers[0]


async def admit(server: Server, client: Client, room: str, **how: Any) -> Answer:
    """Subscribe a client by the server."""
    answers: list[Answer] = []
    command = connection_of(server, client).conversation.admit(room, answers.append, **how)
    assert command is not None
    return await carry_out(server, command, answers)


async def remove(server: Server, connection: Connection, room: str) -> Answer:
    """Take a connection out of a room."""
    answers: list[Answer] = []
    return await carry_out(server, Unsubscribe(connection, room, answers.append, by_server=True), answers)


async def publish(server: Server, room: str, data: bytes, **how: Any) -> Answer:
    """Publish as the server."""
    answers: list[Answer] = []
    return await carry_out(server, Publish(room, data, Kind.JSON, reply=answers.append, **how), answers)


async def test_the_server_subscribes_and_unsubscribes() -> None:
    """The client is told first, then it hears the room; others see what the server says of it."""
    async with (
        open_server(join_leave=True) as server,
        open_structured(server.port) as client,
        open_structured(server.port) as watcher,
    ):
        await watcher.ask("subscribe", channel="room", join_leave=True)
        await watcher.push()  # its own join
        answer = await admit(server, client, "room", info=b'{"role":"host"}', data=b'{"topic":1}')
        assert isinstance(answer, Subscribed)
        assert await admit(server, client, "room") == Refused(Refusal.ALREADY_SUBSCRIBED)
        await publish(server, "room", b'"hello"', tags={"from": "us"})
        push = await client.push()
        epoch = answer.position.epoch
        told = {"data": {"topic": 1}, "recoverable": True, "positioned": True, "epoch": epoch, "offset": 0}
        assert push == {"channel": "room", "subscribe": told}
        assert await client.publication("room") == {"data": "hello", "offset": 1, "tags": {"from": "us"}}
        joined = (await watcher.push())["join"]["info"]
        assert joined == {"user": "", "client": client.client, "chan_info": {"role": "host"}}
        assert (await watcher.publication("room"))["data"] == "hello"
        present = (await watcher.ask("presence", channel="room"))["presence"]
        assert present[client.client]["chan_info"] == {"role": "host"}
        await client.ask("publish", channel="room", data=2)
        assert (await watcher.publication("room"))["info"]["chan_info"] == {"role": "host"}

        assert await remove(server, connection_of(server, client), "room") == Done()
        assert (await client.publication("room"))["data"] == 2
        assert await client.push() == {
            "channel": "room",
            "unsubscribe": {"code": 2000, "reason": "server unsubscribe"},
        }
        assert (await watcher.push())["leave"]["info"] == joined
        await publish(server, "room", b"3")
        await client.goes_on()
        assert not client.pushes


async def test_recovery_by_the_server() -> None:
    """The server may say where the client was."""
    async with open_server() as server, open_structured(server.port) as client:
        first = await publish(server, "room", b"1")
        await publish(server, "room", b"2")
        assert await admit(server, client, "room", since=first.position) is not None  # type: ignore[union-attr]
        told = (await client.push())["subscribe"]
        assert told["offset"] == 1
        assert await client.publication("room") == {"data": 2, "offset": 2}


async def test_who_cannot_subscribe_again_comes_back() -> None:
    """Who is in a room by the server and misses something there is disconnected with 3010; others get 2500."""
    async with open_server() as server, open_structured(server.port) as client, open_structured(server.port) as other:
        await admit(server, client, "room")
        await other.ask("subscribe", channel="room")
        await publish(server, "room", b"1")
        server.node.engine.forget("room")
        await publish(server, "room", b"2")
        closed = await client.ended()
        assert (closed.code, closed.reason) == (3010, "insufficient state")
        assert (await other.publication("room"))["data"] == 1
        assert (await other.push())["unsubscribe"]["code"] == 2500


async def test_dismissed() -> None:
    """A connection ends with the words of the back end, once it has heard what it still had to hear."""
    async with open_server() as server, open_structured(server.port) as client, open_peer(server.port) as plain:
        await client.ask("subscribe", channel="chat")
        await plain.send("last")
        for connection in list(server.node.connections):
            words = Disconnect(4123, "go away")
            await server.node.inbox.put(Tell(connection, partial(connection.dismiss, words), ends=True))
        assert (await client.publication("chat"))["data"] == "last"
        closed = await client.ended()
        assert (closed.code, closed.reason) == (4123, "go away")
        assert await plain.receive() == "last"
        with pytest.raises(Closed) as end:
            await plain.receive()
        assert (end.value.code, end.value.reason) == (4123, "go away")
        await until_quiet(server.node)


async def test_a_plain_client_is_removed() -> None:
    """Without its room it has nothing left; and it can't be put into another."""
    async with open_server() as server, open_peer(server.port, "/chat/room") as plain:
        (connection,) = server.node.connections
        assert connection.conversation.admit("other", print) is None
        await remove(server, connection, "elsewhere")
        await plain.send("still here")
        assert await plain.receive() == "still here"
        await remove(server, connection, "room")
        with pytest.raises(Closed) as end:
            await plain.receive()
        assert (end.value.code, end.value.reason) == (1008, "removed from the room")


async def test_connections_of_a_user() -> None:
    """They are found by the user, counted, limited, and forgotten."""
    settings: dict[str, Any] = {"token_hmac_secret": SECRET, "connections_per_user_max": 2, "anonymous": True}
    ann = {"token": sign(sub="ann")}
    async with open_server(**settings) as server:
        connections = server.node.connections
        async with open_structured(server.port, connected=False) as one, open_peer(server.port) as stranger:
            await one.connect(**ann)
            async with open_peer(server.port, f"/chat?token={ann['token']}"):
                assert {connection.member.user for connection in connections.of_user("ann")} == {"ann"}
                assert len(connections.of_user("ann")) == 2
                assert (connections.users, len(connections.of_user(""))) == (2, 1)
                async with open_structured(server.port, connected=False) as third:
                    await third.say("connect", **ann)
                    closed = await third.ended()
                    assert (closed.code, closed.reason) == (3504, "connection limit")
                assert await status_of(server, f"/chat?token={ann['token']}") == 429
                assert await status_of(server, f"/chat?token={sign(sub='bob')}") == 101
                await one.goes_on()
            while len(connections.of_user("ann")) > 1:
                await trio.sleep(0.01)
            async with open_structured(server.port, connected=False) as again:
                await again.connect(**ann)
            await stranger.send("still here")
            assert await stranger.receive() == "still here"
        await until_quiet(server.node)
        assert (connections.users, connections.of_user("ann"), connections.of_user("")) == (0, [], [])


async def test_tokens_say_what_others_see_in_a_room() -> None:
    """`info` of a subscription's token, and of `subs`, there with `data` for the client; `b64info` is the same."""
    settings: dict[str, Any] = {"token_hmac_secret": SECRET, "anonymous": True}
    subs = {"a": {"info": {"x": 1}, "data": [2]}, "b": {"b64info": "eyJ4IjogM30="}}
    async with open_server(**settings) as server, open_structured(server.port, connected=False) as client:
        result = await client.connect(token=sign(sub="ann", subs=subs, b64info="NQ=="))
        assert result["subs"]["a"]["data"] == [2]
        assert "data" not in result["subs"]["b"]
        await client.ask("subscribe", channel="$c", token=sign(sub="ann", channel="$c", info="six"))
        for room, info in {"a": {"x": 1}, "b": {"x": 3}, "$c": "six"}.items():
            (seen,) = (await client.ask("presence", channel=room))["presence"].values()
            assert seen == {"user": "ann", "client": client.client, "conn_info": 5, "chan_info": info}
        await client.ask("refresh", token=sign(sub="ann", info="new"))
        (seen,) = (await client.ask("presence", channel="a"))["presence"].values()
        assert (seen["conn_info"], seen["chan_info"]) == ("new", {"x": 1})
    for claims in ({"b64info": "?"}, {"b64info": "e30"}, {"subs": {"a": {"b64info": "e3s="}}}, {"subs": {"a": 1}}):
        async with open_server(**settings) as server, open_structured(server.port, connected=False) as client:
            await client.say("connect", token=sign(sub="ann", **claims))
            assert (await client.ended()).code == 3500, claims


async def test_what_is_not_kept_is_not_missed() -> None:
    """`skip_history`: heard in its place, but neither stored nor counted, so recovery stays exact."""
    async with open_server() as server, open_structured(server.port) as client:
        joined = await client.ask("subscribe", channel="room")
        assert await publish(server, "room", b"1") is not None
        passing = await publish(server, "room", b'"passing"', keep=False, idempotency_key="k")
        again = await publish(server, "room", b'"passing"', keep=False, idempotency_key="k")
        assert passing == again
        assert getattr(passing, "position", 1) is None
        await publish(server, "room", b"2")
        heard = [await client.publication("room") for _ in range(3)]
        assert [(item["data"], item.get("offset")) for item in heard] == [(1, 1), ("passing", None), (2, 2)]
        history = await client.ask("history", channel="room", limit=-1)
        assert [item["data"] for item in history["publications"]] == [1, 2]
        await client.ask("unsubscribe", channel="room")
        back = await client.ask("subscribe", channel="room", recover=True, epoch=joined["epoch"], offset=1)
        assert back["recovered"]
        assert [item["data"] for item in back["publications"]] == [2]
        assert Position(joined["epoch"], 2) == server.node.engine.read("room", 0.0).position
