"""Who may do what in a room: the table in `hubbub.auth.permissions`, each of its cells, over real sockets.

The table is read from that module's docstring, so that what is written and what holds can't differ.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, get_args

import pytest
import trio

from hubbub.auth import permissions
from hubbub.auth.permissions import Standing, Who, may, may_subscribe
from hubbub.config_types import Namespace
from hubbub.config_types import Who as Configured
from hubbub.core.frames import CLOSE, TEXT
from peers import Closed, HandshakeRefused, client_frame, close_payload, open_peer
from servers import Server, open_server
from signing import SECRET, in_seconds, sign
from structured import Client, Refused, open_structured

STRANGER, USER, INSIDE, BY_TOKEN = "a stranger", "a user", "in the room", "in it by a token for it"


def read_table() -> dict[str, dict[str, str]]:
    """The cells of the docstring's table, by setting and column."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in (permissions.__doc__ or "").splitlines()
        if line.startswith("|")
    ]
    header, ruler, *body = rows
    assert header == ["setting", STRANGER, USER, INSIDE, BY_TOKEN]
    assert set("".join(ruler)) == {"-"}
    assert all(len(row) == len(header) for row in body)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in body}


TABLE = read_table()
SETTINGS = tuple(TABLE)


class Kind(NamedTuple):
    """A kind of client: its column of the table, and whether a token names it."""

    column: str
    user: str

    def may(self, setting: str) -> bool:
        """What the table says."""
        return {"✓": True, "": False, "if a user": self.user != ""}[TABLE[setting][self.column]]


KINDS = {
    "a stranger": Kind(STRANGER, ""),
    "a user": Kind(USER, "ann"),
    "a stranger in the room": Kind(INSIDE, ""),
    "a user in the room": Kind(INSIDE, "ann"),
    "a stranger in the room by a token": Kind(BY_TOKEN, ""),
    "a user in the room by a token": Kind(BY_TOKEN, "ann"),
}


def namespaces() -> dict[str, Namespace]:
    """Two for each setting: n_SETTING for all but joining, s_SETTING for that."""
    found: dict[str, Namespace] = {}
    for setting in SETTINGS:
        who: Any = setting
        found[f"n_{setting}"] = Namespace(
            allow_subscribe="anonymous", allow_publish=who, allow_history=who, allow_presence=who
        )
        found[f"s_{setting}"] = Namespace(
            allow_subscribe=who, allow_publish="anonymous", allow_history="anonymous", allow_presence="anonymous"
        )
    return found


@contextlib.asynccontextmanager
async def open_house(**settings: object) -> AsyncIterator[Server]:
    """A server with all these namespaces, which lets strangers in."""
    overrides: dict[str, Any] = {"anonymous": True, "token_hmac_secret": SECRET, **settings}
    async with open_server(**{"insecure": False, "namespaces": namespaces(), **overrides}) as server:
        yield server


@contextlib.asynccontextmanager
async def open_client(server: Server, user: str) -> AsyncIterator[Client]:
    """A structured client, by a token if it is a user."""
    async with open_structured(server.port, connected=False) as client:
        await client.connect(**({"token": sign(sub=user)} if user else {}))
        yield client


async def code_of(client: Client, method: str, /, **body: object) -> int:
    """0, or the error that a command gets; the connection goes on."""
    try:
        await client.ask(method, **body)
    except Refused as refused:
        return refused.code
    return 0


async def status_of(server: Server, target: str) -> int:
    """What a plain handshake is answered with."""
    try:
        async with open_peer(server.port, target):
            return 101
    except HandshakeRefused as refused:
        return refused.status


def test_the_table_has_every_setting() -> None:
    """In the settings' own order, from nobody to everyone."""
    assert get_args(Who) == get_args(Configured) == SETTINGS
    for kind in KINDS.values():
        assert [kind.may("nobody"), kind.may("anonymous")] == [False, True]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_decision(setting: Who, kind: Kind) -> None:
    """The function that all commands ask."""
    standing = Standing(kind.user, subscribed=kind.column != STRANGER and kind.column != USER, by_token=False)
    if kind.column == BY_TOKEN:
        standing = Standing(kind.user, subscribed=True, by_token=True)
    assert may(setting, standing) is kind.may(setting)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_structured_commands(kind: Kind) -> None:
    """publish, history, presence, presence_stats: carried out, or 103."""
    async with open_house() as server, open_client(server, kind.user) as client:
        for setting in SETTINGS:
            room = f"n_{setting}:room"
            if kind.column == BY_TOKEN:
                await client.ask("subscribe", channel=room, token=sign(sub=kind.user, channel=room))
            elif kind.column == INSIDE:
                await client.ask("subscribe", channel=room)
            expected = 0 if kind.may(setting) else 103
            for method, body in (
                ("publish", {"data": 1}),
                ("history", {"limit": 5}),
                ("presence", {}),
                ("presence_stats", {}),
            ):
                assert await code_of(client, method, channel=room, **body) == expected, (setting, method)
            assert server.node.engine.recent(room, 5, 0).position.offset == kind.may(setting)


@pytest.mark.parametrize("user", ["", "ann"])
@pytest.mark.parametrize("shows", [False, True], ids=["without a token for the room", "with one"])
async def test_structured_subscribe(user: str, shows: bool) -> None:
    """By the columns of those who aren't in the room yet; a token for it counts as if it were."""
    async with open_house() as server, open_client(server, user) as client:
        for setting in SETTINGS:
            room = f"s_{setting}:room"
            column = BY_TOKEN if shows else (USER if user else STRANGER)
            expected = 0 if Kind(column, user).may(setting) else 103
            body = {"token": sign(sub=user, channel=room)} if shows else {}
            assert await code_of(client, "subscribe", channel=room, **body) == expected, setting
            assert await code_of(client, "subscribe", channel=room, **body) == (105 if expected == 0 else 103), setting
            assert server.node.rooms.occupancy(room) == (expected == 0)
            # What it may do there otherwise is another setting's matter.
            assert await code_of(client, "publish", channel=room, data=1) == 0


@pytest.mark.parametrize("user", ["", "ann"])
@pytest.mark.parametrize("setting", SETTINGS)
async def test_plain(setting: str, user: str) -> None:
    """Joining and history: 403 before the upgrade; publishing: Close 1008. A plain client is always in its room."""
    token = f"token={sign(sub=user)}" if user else ""
    inside, outside = Kind(INSIDE, user), Kind(USER if user else STRANGER, user)
    async with open_house() as server:
        status = 101 if outside.may(setting) else 403
        assert await status_of(server, f"/chat/s_{setting}:room?{token}") == status
        status = 101 if inside.may(setting) else 403
        assert await status_of(server, f"/chat/n_{setting}:room?history=5&{token}") == status
        assert await status_of(server, f"/chat/n_{setting}:room?history=0&{token}") == 101
        async with (
            open_peer(server.port, f"/chat/n_{setting}:room?{token}") as peer,
            open_peer(server.port, f"/chat/n_{setting}:room?{token}") as bystander,
        ):
            await peer.send("hello")
            if inside.may(setting):
                assert await bystander.receive() == await peer.receive() == "hello"
            else:
                with pytest.raises(Closed) as closed:
                    await peer.receive()
                assert (closed.value.code, closed.value.reason) == (1008, "not permitted to publish here")
                messages, _ = await bystander.close()
                assert messages == []


async def test_what_is_refused_is_counted() -> None:
    """For the operator."""
    async with open_house() as server, open_client(server, "") as client:
        assert await code_of(client, "publish", channel="n_nobody:room", data=1) == 103
        async with open_peer(server.port, "/chat/n_nobody:room") as peer:
            await peer.send("hello")
            await peer.receive_until_closed()
        refused = {why.name: count for why, count in server.node.hub.statistics().refused.items() if count}
        assert refused == {"DENIED": 2}


async def test_private_rooms() -> None:
    """`$…` only by a token for it, whatever the setting; with nobody, not even so. Their namespace is without the $."""
    async with open_house() as server, open_client(server, "ann") as client:
        for setting in SETTINGS:
            room = f"$s_{setting}:room"
            token = sign(sub="ann", channel=room)
            assert await code_of(client, "subscribe", channel=room) == 103
            assert await code_of(client, "subscribe", channel=room, token=token) == (103 if setting == "nobody" else 0)
            assert await status_of(server, f"/chat/{room}?token={sign(sub='ann')}") == 403
        assert await code_of(client, "subscribe", channel="$nowhere:room") == 102


@pytest.mark.parametrize("room", ["$room", "#ann", "#", "room", "$", "##ann"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_who_may_join(setting: Who, room: str) -> None:
    """All kinds of names."""
    for user in ("", "ann", "bob", "#ann"):
        for by_token in (False, True):
            allowed = may_subscribe(setting, room, Standing(user, by_token=by_token))
            if room.startswith("$"):
                assert allowed == (by_token and setting != "nobody")
            elif room.startswith("#"):
                assert allowed == (user != "" and room == f"#{user}")
            else:
                assert allowed == may(setting, Standing(user, by_token=by_token))


async def test_a_permission_ends_with_the_subscription() -> None:
    """Whoever has left is outside again; coming back without the token is not coming back by it."""
    async with open_house() as server, open_client(server, "ann") as client:
        room = "n_tokens:room"
        await client.ask("subscribe", channel=room, token=sign(sub="ann", channel=room))
        assert await code_of(client, "publish", channel=room, data=1) == 0
        await client.ask("unsubscribe", channel=room)
        assert await code_of(client, "publish", channel=room, data=1) == 103
        await client.ask("subscribe", channel=room)
        assert await code_of(client, "publish", channel=room, data=1) == 103
        room = "n_subscribers:room"
        assert await code_of(client, "history", channel=room) == 103
        await client.ask("subscribe", channel=room)
        assert await code_of(client, "history", channel=room) == 0
        await client.ask("unsubscribe", channel=room)
        assert await code_of(client, "history", channel=room) == 103


async def test_what_was_said_before_the_end_counts_as_said_in_the_room() -> None:
    """A Close right behind a publication doesn't take the permission away from it, however the hub gets to them."""
    async with open_house() as server, open_structured(server.port, connected=False) as listener:
        rooms = [f"n_{setting}:room" for setting in ("subscribers", "users", "tokens", "nobody")]
        await listener.connect(token=sign(sub="bob", channels=rooms))
        close = client_frame(CLOSE, close_payload(1000))
        expected: list[str] = []
        for number in range(20):
            for room in rooms[:2]:
                async with open_peer(server.port, f"/chat/{room}?token={sign(sub='ann')}") as plain:
                    await plain.send_raw(client_frame(TEXT, f"plain {number}".encode()) + close)
                    expected.append(f"plain {number}")
                    assert (await plain.receive_until_closed())[1].code == 1000
            async with open_client(server, "ann") as client:
                for room in rooms:
                    token = {"token": sign(sub="ann", channel=room)} if room == "n_tokens:room" else {}
                    await client.ask("subscribe", channel=room, **token)
                publishes = b"".join(
                    client_frame(TEXT, json.dumps(client.number({"publish": {"channel": room, "data": room}})).encode())
                    for room in rooms
                )
                expected += rooms[:3]
                await client.peer.send_raw(publishes + close)
                await client.ended()
        heard = [(await listener.push())["pub"]["data"] for _ in expected]
        assert sorted(heard) == sorted(expected)
        await until_left(server, listener)
        await listener.goes_on()
        assert not listener.pushes


async def until_left(server: Server, last: Client) -> None:
    """Wait until only one is connected."""
    with trio.fail_after(5):
        while len(server.node.connections) > 1:
            await trio.sleep(0.01)
    assert {connection.member.client for connection in server.node.connections} == {last.client}


async def test_commands_in_one_frame() -> None:
    """Each is decided when it is carried out, so a publish right behind its subscribe is allowed."""
    async with open_house() as server, open_client(server, "") as client:
        commands = [
            client.number({method: {"channel": "n_subscribers:room", **body}})
            for method, body in (("publish", {"data": 1}), ("subscribe", {}), ("publish", {"data": 2}))
        ]
        await client.send(*commands)
        replies = [await client.reply(command["id"]) for command in commands]
        assert ["error" in reply for reply in replies] == [True, False, False]
        assert (await client.publication("n_subscribers:room"))["data"] == 2


async def test_who_is_switched_off_is_told_so() -> None:
    """Error 108 comes before 103: no permission would help."""
    off = Namespace(history_size=0, presence=False, allow_history="nobody", allow_presence="nobody")
    async with open_house(namespaces={"off": off}) as server, open_client(server, "") as client:
        for method in ("history", "presence", "presence_stats"):
            assert await code_of(client, method, channel="off:room") == 108


@pytest.mark.parametrize("setting", SETTINGS)
async def test_who_is_told_of_joins_and_leaves(setting: str) -> None:
    """Those who may ask who is there."""
    who: Any = setting
    loud = Namespace(join_leave=True, force_join_leave=True, allow_presence=who)
    async with open_house(namespaces={"loud": loud}) as server:
        for kind in KINDS.values():
            if kind.column not in (INSIDE, BY_TOKEN):
                continue
            async with open_client(server, kind.user) as client, open_client(server, "") as other:
                token = {"token": sign(sub=kind.user, channel="loud:x")} if kind.column == BY_TOKEN else {}
                await client.ask("subscribe", channel="loud:x", **token)
                await other.ask("subscribe", channel="loud:x")
                await other.ask("unsubscribe", channel="loud:x")
                await client.ask("publish", channel="loud:x", data=1)
                kinds = []
                while "pub" not in kinds:
                    kinds.append((set(await client.push()) - {"channel"}).pop())
                assert kinds == (["join", "join", "leave", "pub"] if kind.may(setting) else ["pub"])


async def test_where_the_server_has_put_a_client() -> None:
    """It is in the room like anybody else, though it couldn't have joined; it isn't there by a token for the room."""
    async with open_house() as server, open_structured(server.port, connected=False) as client:
        rooms = ["s_nobody:room", "n_subscribers:room", "n_tokens:room"]
        result = await client.connect(token=sign(sub="ann", channels=rooms))
        assert set(result["subs"]) == set(rooms)
        assert await code_of(client, "publish", channel="n_subscribers:room", data=1) == 0
        assert await code_of(client, "publish", channel="n_tokens:room", data=1) == 103


async def test_a_changed_setting_counts_at_once() -> None:
    """Also for who is in the room already; they stay."""
    async with open_house() as server, open_client(server, "") as client:
        await client.ask("subscribe", channel="room")
        assert await code_of(client, "publish", channel="room", data=1) == 0
        server.node.settings.allow_publish = "nobody"
        assert await code_of(client, "publish", channel="room", data=2) == 103
        assert (await client.publication("room"))["data"] == 1
        server.node.settings.allow_publish = "anonymous"
        assert await code_of(client, "publish", channel="room", data=3) == 0
        assert (await client.publication("room"))["data"] == 3


async def test_insecure() -> None:
    """Everyone may do everything, without a token; one that is shown is checked all the same."""
    wrong = sign(sub="ann", channel="$room", secret="somebody else's, quite long")
    async with open_house(insecure=True, anonymous=False) as server, open_client(server, "") as client:
        for room in ("n_nobody:room", "s_nobody:room", "$room", "#ann", "room"):
            for method, body in (
                ("publish", {"data": 1}),
                ("history", {"limit": 5}),
                ("presence", {}),
                ("subscribe", {}),
                ("publish", {"data": 1}),
            ):
                assert await code_of(client, method, channel=room, **body) == 0, (room, method)
            target = room.replace("#", "%23")
            async with open_peer(server.port, f"/chat/{target}?history=1") as peer:
                await peer.send("hello")
                assert await peer.receive_texts(2) == ["1", "hello"]
            assert await status_of(server, f"/chat/{target}?token={wrong}") == 401
        assert await code_of(client, "subscribe", channel="other", token=wrong) == 103
        expired = sign(channel="other", exp=in_seconds(-60))
        assert await code_of(client, "subscribe", channel="other", token=expired) == 109
        for token in (wrong, "x"):
            async with open_structured(server.port, connected=False) as other:
                await other.send(other.number({"connect": {"token": token}}))
                assert (await other.ended()).code == 3500


async def test_defaults_on_loopback() -> None:
    """What the chat page needs works without any setting; what nobody needs from outside a room, doesn't."""
    async with (
        open_server(insecure=False) as server,
        open_peer(server.port, "/chat/room?history=50") as page,
        open_peer(server.port, "/chat/room?history=50") as other,
    ):
        await page.send("me: hello")
        assert await page.receive() == await other.receive() == "me: hello"
        async with open_peer(server.port, "/chat/room?history=50") as late:
            assert await late.receive() == "me: hello"
        async with open_structured(server.port) as client:
            outside = {"publish": {"data": 1}, "history": {"limit": 5}, "presence": {}, "presence_stats": {}}
            for method, body in outside.items():
                assert await code_of(client, method, channel="room", **body) == 103
            await client.ask("subscribe", channel="room")
            for method, body in outside.items():
                assert await code_of(client, method, channel="room", **body) == 0
            assert await page.receive() == "1"
            assert await code_of(client, "subscribe", channel="$room") == 103
            assert await code_of(client, "subscribe", channel="#room") == 103
            await client.ask("unsubscribe", channel="room")
            for method, body in outside.items():
                assert await code_of(client, method, channel="room", **body) == 103
