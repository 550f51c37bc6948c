"""The server API: what each method does, as structured and plain clients see it, and what it refuses."""

import base64
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
import trio

from apis import ALL, PUBLISH, READ, ApiError, open_api
from hubbub.config_types import Namespace
from hubbub.web.api.methods import METHODS
from hubbub.web.api.openapi import describe
from peers import Closed, open_peer
from signing import SECRET, sign
from structured import Client, open_structured

ROOM = "room"


async def refused(call: Any, code: int, *words: str) -> ApiError:
    """See that a call is refused with that code, and that its message holds those words."""
    with pytest.raises(ApiError) as caught:
        await call
    assert caught.value.code == code, caught.value
    assert all(word in caught.value.message for word in words), caught.value
    return caught.value


async def position_of(client: Client, room: str = ROOM) -> dict[str, Any]:
    """Return where a room is now."""
    past = await client.ask("history", channel=room, limit=0)
    return {"offset": past["offset"], "epoch": past["epoch"]}


# -- publish, broadcast


async def test_publish_reaches_both_dialects_and_history() -> None:
    async with open_api() as api, open_structured(api.port) as client, open_peer(api.port, f"/chat/{ROOM}") as plain:
        await client.ask("subscribe", channel=ROOM)
        result = await api.call("publish", channel=ROOM, data={"text": ["a b", 1.50, None]}, tags={"lang": "de"})
        assert result["offset"] == 1
        heard = await client.publication(ROOM)
        assert heard == {"data": {"text": ["a b", 1.5, None]}, "offset": 1, "tags": {"lang": "de"}}  # nobody said it
        assert await plain.receive() == '{"text":["a b",1.5,null]}'
        await api.call("publish", channel=ROOM, data="hello")
        assert await plain.receive() == "hello"
        past = await api.call("history", channel=ROOM, limit=-1)
        assert past["epoch"] == result["epoch"]
        assert past["publications"] == [heard, {"data": "hello", "offset": 2}]


async def test_binary() -> None:
    data = bytes(range(256))
    async with open_api() as api, open_structured(api.port) as client, open_peer(api.port, f"/chat/{ROOM}") as plain:
        await client.ask("subscribe", channel=ROOM)
        encoded = base64.b64encode(data).decode()
        await api.call("publish", channel=ROOM, b64data=encoded, data=None)
        assert await plain.receive() == data
        assert (await client.publication(ROOM))["data"] == {"b64": encoded}
        await refused(api.call("publish", channel=ROOM, b64data="AA=A"), 107, "b64data", "Base64")


async def test_json_goes_through_as_it_is() -> None:
    """Numbers keep their digits; white space and newlines, which would end a frame's line, are gone."""
    async with open_api() as api, open_structured(api.port) as client:
        await client.ask("subscribe", channel=ROOM)
        number = b"12345678901234567890123.4500e1"
        response = await api.post("publish", b'{"channel":"room",\n"data":{"a" :\r\n\t[' + number + b', " x\\n"]}}')
        assert "result" in response.json()
        await client.push()
        assert number in client.frames[-1].encode()
        assert '{"a":[' in client.frames[-1]
        for data in ("null", "0", '""', "[]", "false"):
            await api.post("publish", b'{"channel":"room","data":%s}' % data.encode())
            assert (await client.publication(ROOM))["data"] == json.loads(data)


async def test_broadcast() -> None:
    async with open_api() as api, open_structured(api.port) as client:
        await client.ask("subscribe", channel="b")
        result = await api.call("broadcast", channels=["a", "b", "", "nowhere:c", "b"], data=1, tags={"x": "y"})
        first, second, nameless, unknown, again = result["responses"]
        assert first["result"]["offset"] == second["result"]["offset"] == 1
        assert nameless["error"]["code"] == 107
        assert unknown["error"]["code"] == 102
        assert again["result"]["offset"] == 2
        assert await client.publication("b") == {"data": 1, "offset": 1, "tags": {"x": "y"}}
        assert (await api.call("broadcast", channels=[], data=1)) == {"responses": []}


async def test_broadcast_to_many_rooms_through_a_small_inbox() -> None:
    async with open_api(inbox_commands_max=2, inbox_bytes_max=1024) as api:
        result = await api.call("broadcast", channels=[f"r{number}" for number in range(1_000)], data="x" * 100)
        assert [response["result"]["offset"] for response in result["responses"]] == [1] * 1_000


async def test_same_key_from_fifty_requests_is_one_publication() -> None:
    async with open_api() as api, open_structured(api.port) as client:
        await client.ask("subscribe", channel=ROOM)
        results: list[dict[str, Any]] = []

        async def publish(number: int) -> None:
            results.append(await api.call("publish", channel=ROOM, data=number, idempotency_key="k"))

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(publish, number)
        assert len({json.dumps(result) for result in results}) == 1
        assert len((await api.call("history", channel=ROOM, limit=-1))["publications"]) == 1
        # The server's keys are its own; another room's are others.
        await client.ask("publish", channel=ROOM, data=1, idempotency_key="k")
        await api.call("publish", channel="elsewhere", data=1, idempotency_key="k")
        assert (await api.call("history", channel=ROOM))["offset"] == 2
        assert (await api.call("history", channel="elsewhere"))["offset"] == 1
        broadcast = await api.call("broadcast", channels=[ROOM, "third"], data=1, idempotency_key="k")
        assert [response["result"]["offset"] for response in broadcast["responses"]] == [1, 1]
        assert (await api.call("history", channel=ROOM))["offset"] == 2


async def test_idempotency_keys_run_out() -> None:
    async with open_api(idempotency_keys_max=1) as api:
        await api.call("publish", channel=ROOM, data=1, idempotency_key="a")
        error = await refused(api.call("publish", channel=ROOM, data=1, idempotency_key="b"), 111)
        assert error.temporary
        await api.call("publish", channel=ROOM, data=1, idempotency_key="a")
        await refused(api.call("publish", channel=ROOM, data=1, idempotency_key="k" * 65), 107, "64 characters")


async def test_one_client_does_not_use_up_idempotency_keys() -> None:
    """Others go on, and the server when no client can; and a stranger that comes back is known by its key."""

    async def take(client: Client) -> int:
        """Publish with new keys until they are refused; return how many weren't."""
        for number in itertools.count():
            message = {"channel": ROOM, "data": number, "idempotency_key": f"{client.client} {number}"}
            reply = await client.reply(await client.say("publish", **message))
            if "error" in reply:
                assert (reply["error"]["code"], reply["error"]["temporary"]) == (111, True)
                break
        return number

    async with open_api(idempotency_keys_max=40) as api, open_structured(api.port) as other:
        async with open_structured(api.port) as client:
            assert await take(client) == 10
            first = await client.ask("publish", channel=ROOM, data=0, idempotency_key=f"{client.client} 0")
        again = await other.ask("publish", channel=ROOM, data=0, idempotency_key=f"{client.client} 0")
        assert again == first
        assert await take(other) == 10
        async with open_structured(api.port) as third:
            assert await take(third) == 0
        for number in range(20):
            await api.call("publish", channel=ROOM, data=number, idempotency_key=str(number))
        await refused(api.call("publish", channel=ROOM, data=1, idempotency_key="one more"), 111)


async def test_skip_history() -> None:
    """It has its place in the order of what is heard, none in the history; and recovery goes on around it."""
    async with open_api() as api, open_structured(api.port) as client, open_structured(api.port) as other:
        await client.ask("subscribe", channel=ROOM)
        heard = []
        for number in range(9):
            result = await api.call("publish", channel=ROOM, data=number, skip_history=number % 3 == 1)
            assert ("offset" in result) == (number % 3 != 1)
            heard.append(await client.publication(ROOM))
        assert [one["data"] for one in heard] == list(range(9))
        assert [one.get("offset") for one in heard] == [1, None, 2, 3, None, 4, 5, None, 6]
        past = await api.call("history", channel=ROOM, limit=-1)
        assert [one["data"] for one in past["publications"]] == [0, 2, 3, 5, 6, 8]
        since = {"epoch": past["epoch"], "offset": 3}
        recovered = await other.ask("subscribe", channel=ROOM, recover=True, **since)
        assert recovered["recovered"]
        assert [one["data"] for one in recovered["publications"]] == [5, 6, 8]
        await api.call("publish", channel=ROOM, data="passing", skip_history=True)
        await api.call("publish", channel=ROOM, data="kept")
        assert [await other.publication(ROOM) for _ in range(2)] == [
            {"data": "passing"},
            {"data": "kept", "offset": 7},
        ]


async def test_permissions_of_rooms_are_for_clients() -> None:
    nobody = Namespace(
        allow_subscribe="nobody", allow_publish="nobody", allow_history="nobody", allow_presence="nobody"
    )
    async with open_api(insecure=False, anonymous=True, namespaces={"ns": nobody}) as api:
        await api.call("publish", channel="ns:a", data=1)
        await api.call("publish", channel="#42", data=1)
        await api.call("publish", channel="$private", data=1)
        assert len((await api.call("history", channel="ns:a", limit=1))["publications"]) == 1
        assert await api.call("presence", channel="ns:a") == {"presence": {}}


async def test_switched_off() -> None:
    namespaces = {"quiet": Namespace(history_size=0, presence=False)}
    async with open_api(namespaces=namespaces) as api:
        assert await api.call("publish", channel="quiet:a", data=1) == {}
        for method in ("history", "presence", "presence_stats", "history_remove"):
            await refused(api.call(method, channel="quiet:a"), 108)
            await refused(api.call(method, channel="nowhere:a"), 102)
        await refused(api.call("publish", channel="nowhere:a", data=1), 102)


# -- presence, history, channels, info


async def test_presence() -> None:
    async with open_api() as api, open_structured(api.port) as client, open_peer(api.port, f"/chat/{ROOM}"):
        await client.ask("subscribe", channel=ROOM)
        presence = (await api.call("presence", channel=ROOM))["presence"]
        assert presence[client.client] == {"user": "", "client": client.client}
        assert len(presence) == 2
        assert await api.call("presence_stats", channel=ROOM) == {"num_clients": 2, "num_users": 1}


async def test_history() -> None:
    async with open_api(recovery_publications_max=5) as api:
        for number in range(1, 9):
            await api.call("publish", channel=ROOM, data=number)

        async def read(**options: Any) -> list[int]:
            past = await api.call("history", channel=ROOM, **options)
            assert past["offset"] == 8
            return [one["data"] for one in past["publications"]]

        assert await read() == await read(limit=0) == await read(limit=None) == []
        assert await read(limit=2) == [1, 2]
        assert await read(limit=-1) == await read(limit=100) == [1, 2, 3, 4, 5]
        assert await read(limit=2, since={"offset": 5}) == [6, 7]
        assert await read(limit=2, reverse=True) == [8, 7]
        assert await read(limit=9, reverse=True, since={"offset": 3}) == [2, 1]
        await refused(api.call("history", channel=ROOM, limit=1, since={"offset": 1, "epoch": "another"}), 112)
        await refused(api.call("history", channel=ROOM, reverse=True, since={"offset": 0}), 107, "before offset 0")


async def test_history_remove() -> None:
    """What is kept goes, places go on; who was away learns that it has missed something."""
    async with open_api() as api, open_structured(api.port) as client:
        await client.ask("subscribe", channel=ROOM)
        since = await position_of(client)
        await api.call("publish", channel=ROOM, data=1)
        assert await api.call("history_remove", channel=ROOM) == {}
        past = await api.call("history", channel=ROOM, limit=-1)
        assert (past["publications"], past["offset"], past["epoch"]) == ([], 1, since["epoch"])
        await client.ask("unsubscribe", channel=ROOM)
        again = await client.ask("subscribe", channel=ROOM, recover=True, **since)
        assert not again.get("recovered", False)
        assert (await api.call("publish", channel=ROOM, data=2))["offset"] == 2


async def test_channels() -> None:
    async with open_api(namespaces={"news": Namespace()}) as api, open_structured(api.port) as client:
        for room in ("news:a", "news:b", "chat", "a*b", "Chat"):
            await client.ask("subscribe", channel=room)
        async with open_peer(api.port, "/chat/chat"):
            one, two = {"num_clients": 1}, {"num_clients": 2}
            everything = {"news:a": one, "news:b": one, "chat": two, "a*b": one, "Chat": one}
            assert (await api.call("channels"))["channels"] == everything
            assert (await api.call("channels", pattern=""))["channels"] == everything
            assert (await api.call("channels", pattern="news:*"))["channels"] == {"news:a": one, "news:b": one}
            assert (await api.call("channels", pattern="[Cc]ha?"))["channels"] == {"chat": two, "Chat": one}
            assert (await api.call("channels", pattern="a[*]b"))["channels"] == {"a*b": one}
            assert (await api.call("channels", pattern="news"))["channels"] == {}


async def test_odd_patterns() -> None:
    async with open_api() as api, open_structured(api.port) as client:
        await client.ask("subscribe", channel="[x")
        for pattern in ("[", "[!", "[]", "[z-a]", "[a--b]", "[a&&b]", "\\", "*" * 255, "(?P<g0>", "\x00", "[x"):
            result = (await api.call("channels", pattern=pattern))["channels"]
            assert bool(result) == (pattern in ("*" * 255, "[x"))


async def test_info() -> None:
    async with open_api() as api, open_structured(api.port) as client, open_structured(api.port):
        await client.ask("subscribe", channel="a")
        await client.ask("subscribe", channel="b")
        (node,) = (await api.call("info"))["nodes"]
        assert node.pop("uid") == (await api.call("info"))["nodes"][0]["uid"]
        assert node.pop("name")
        assert node.pop("version")
        assert 0 <= node.pop("uptime") < 60
        assert node == {"num_clients": 2, "num_users": 1, "num_channels": 2, "num_subs": 2}


# -- users


def token(**claims: object) -> str:
    """A token of the user 42."""
    return sign({"sub": "42", **claims})


SECURE = {"insecure": False, "token_hmac_secret": SECRET}


async def test_subscribe() -> None:
    nobody = Namespace(allow_subscribe="nobody")
    async with (
        open_api(**SECURE, namespaces={"ns": nobody}) as api,
        open_structured(api.port, connected=False) as first,
        open_structured(api.port, connected=False) as second,
        open_structured(api.port, connected=False) as other,
        open_peer(api.port, f"/chat/{ROOM}?token={token()}"),
    ):
        await first.connect(token=token())
        await second.connect(token=token())
        await other.connect(token=sign({"sub": "7"}))
        await api.call("publish", channel="ns:a", data=0)
        result = await api.call("subscribe", user="42", channel="ns:a", data={"welcome": 1}, info={"name": "Ann"})
        assert result == {}
        for client in (first, second):
            push = await client.push()
            assert push["channel"] == "ns:a"
            assert push["subscribe"]["data"] == {"welcome": 1}
            assert push["subscribe"]["offset"] == 1
        await api.call("publish", channel="ns:a", data=1)
        for client in (first, second):
            assert (await client.publication("ns:a"))["data"] == 1
        presence = (await api.call("presence", channel="ns:a"))["presence"]
        assert set(presence) == {first.client, second.client}  # neither the plain one nor the other user
        assert presence[first.client]["chan_info"] == {"name": "Ann"}
        await refused(api.call("subscribe", user="42", channel="ns:a"), 105)
        # One of them only.
        await api.call("subscribe", user="42", channel="ns:b", client=second.client)
        assert (await second.push())["channel"] == "ns:b"
        assert set((await api.call("presence", channel="ns:b"))["presence"]) == {second.client}
        assert await api.call("subscribe", user="7", channel="ns:c", client=first.client) == {}  # it isn't 7's
        assert (await api.call("presence", channel="ns:c"))["presence"] == {}


async def test_subscribe_recovers() -> None:
    async with open_api(**SECURE) as api, open_structured(api.port, connected=False) as client:
        await client.connect(token=token())
        offsets = [await api.call("publish", channel=ROOM, data=number) for number in range(4)]
        await api.call("subscribe", user="42", channel=ROOM, recover_since=offsets[1])
        joined = (await client.push())["subscribe"]
        assert joined["offset"] == 2
        assert "publications" not in joined, "the SDKs don't look for them there"
        missed = [await client.publication(ROOM) for _ in range(2)]
        assert [(one["data"], one["offset"]) for one in missed] == [(2, 3), (3, 4)]


async def test_subscribe_for_a_time() -> None:
    settings = {**SECURE, "ping_seconds": 0.2, "token_grace_seconds_max": 0.2}
    async with open_api(**settings) as api, open_structured(api.port, connected=False) as client:
        await client.connect(token=token())
        await api.call("subscribe", user="42", channel=ROOM, expire_at=time.time() + 0.3)
        assert (await client.push())["channel"] == ROOM
        with trio.fail_after(10):
            assert (await client.ended()).code == 3006


async def test_unsubscribe() -> None:
    async with (
        open_api(**SECURE) as api,
        open_structured(api.port, connected=False) as client,
        open_peer(api.port, f"/chat/{ROOM}?token={token()}") as plain,
    ):
        await client.connect(token=token())
        await client.ask("subscribe", channel=ROOM)
        await api.call("publish", channel=ROOM, data="before")
        await api.call("unsubscribe", user="42", channel=ROOM)
        await api.call("publish", channel=ROOM, data="after")
        assert (await client.publication(ROOM))["data"] == "before"
        push = await client.push()
        assert push == {"channel": ROOM, "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
        messages, closed = await plain.receive_until_closed()
        assert (messages, closed.code) == (["before"], 1008)
        await client.goes_on()
        assert not client.pushes
        assert await api.call("unsubscribe", user="42", channel=ROOM) == {}


@pytest.mark.parametrize(
    ("farewell", "code", "reason"),
    [
        (None, 3503, "force disconnect"),
        ({}, 3503, "force disconnect"),
        ({"code": 0, "reason": ""}, 3503, "force disconnect"),
        ({"code": 3000, "reason": "a"}, 3000, "a"),
        ({"code": 4999, "reason": "ü" * 61}, 4999, "ü" * 61),
        ({"code": 4000}, 4000, "force disconnect"),  # npm's SDK looks at the code only if there is a reason
    ],
)
async def test_disconnect(farewell: object, code: int, reason: str) -> None:
    async with (
        open_api(**SECURE) as api,
        open_structured(api.port, connected=False) as client,
        open_structured(api.port, connected=False) as spared,
        open_structured(api.port, connected=False) as other,
        open_peer(api.port, f"/chat/{ROOM}?token={token()}") as plain,
    ):
        await client.connect(token=token())
        await spared.connect(token=token())
        await other.connect(token=sign({"sub": "7"}))
        await client.ask("subscribe", channel=ROOM)
        await api.call("publish", channel=ROOM, data="last words")
        await api.call("disconnect", user="42", whitelist=[spared.client], disconnect=farewell)
        closed = await client.ended()
        assert (closed.code, closed.reason) == (code, reason)
        assert (await client.publication(ROOM))["data"] == "last words"
        messages, closed = await plain.receive_until_closed()
        assert (messages, closed.code, closed.reason) == (["last words"], code, reason)
        await spared.goes_on()
        await other.goes_on()
        await api.call("disconnect", user="42", client=spared.client)
        assert (await spared.ended()).code == 3503


async def test_disconnect_of_one_stranger() -> None:
    async with open_api() as api, open_structured(api.port) as first, open_structured(api.port) as second:
        await refused(api.call("disconnect", user=""), 107, "user is empty")
        await api.call("disconnect", user="", client=first.client)
        assert (await first.ended()).code == 3503
        await second.goes_on()


@pytest.mark.parametrize(
    ("farewell", "words"),
    [({"code": 2999}, "3000 to 4999"), ({"code": 5000}, "3000 to 4999"), ({"reason": "ü" * 62}, "123 bytes")],
)
async def test_bad_farewells(farewell: object, words: str) -> None:
    async with open_api() as api, open_structured(api.port) as client:
        await refused(api.call("disconnect", user="", client=client.client, disconnect=farewell), 107, words)
        await client.goes_on()


async def test_refresh() -> None:
    settings = {**SECURE, "ping_seconds": 0.2, "token_grace_seconds_max": 0.1, "token_leeway_seconds": 0.0}
    async with open_api(**settings) as api:
        async with open_structured(api.port, connected=False) as client:
            await client.connect(token=token(exp=time.time() + 1))
            await api.call("refresh", user="42", expire_at=time.time() + 60, info={"name": "Ann"})
            await client.ask("subscribe", channel=ROOM)
            await client.ask("publish", channel=ROOM, data=1)
            assert (await client.publication(ROOM))["info"]["conn_info"] == {"name": "Ann"}
            with trio.move_on_after(1.8) as scope:
                await client.ended()
            assert scope.cancelled_caught
            await api.call("refresh", user="42", expired=True)
            assert (await client.ended()).code == 3005
        async with open_structured(api.port, connected=False) as client:
            await client.connect(token=token(exp=time.time() + 60))
            await api.call("refresh", user="42", expire_at=time.time() - 1)
            assert (await client.ended()).code == 3005
        async with open_structured(api.port, connected=False) as client:
            await client.connect(token=token(exp=time.time() + 60))
            await api.call("refresh", user="42", expire_at=time.time() + 0.5)
            with trio.fail_after(10):
                assert (await client.ended()).code == 3005


async def test_nobody_is_connected() -> None:
    async with open_api() as api:
        for method, more in (("subscribe", {"channel": "a"}), ("unsubscribe", {"channel": "a"})):
            assert await api.call(method, user="42", **more) == {}
            assert await api.call(method, user="42", client="nobody", **more) == {}
        for method in ("disconnect", "refresh"):
            assert await api.call(method, user="42") == {}
        await refused(api.call("subscribe", user="42", channel=""), 107, "room name")
        await refused(api.call("unsubscribe", user="42", channel="a\n"), 107, "room name")


# -- batch


async def test_batch_is_carried_out_in_order() -> None:
    async with open_api(**SECURE) as api, open_structured(api.port, connected=False) as client:
        await client.connect(token=token())
        commands: list[dict[str, Any]] = [
            {"publish": {"channel": ROOM, "data": 1}},
            {"subscribe": {"user": "42", "channel": ROOM}},
            {"channels": {}},
            {"publish": {"channel": ROOM, "data": 2}},
            {"publish": {"channel": "nowhere:a", "data": 2}},
            {"broadcast": {"channels": [ROOM], "data": 3}},
            {"unsubscribe": {"user": "42", "channel": ROOM}},
            {"publish": {"channel": ROOM, "data": 4}},
            {"presence_stats": {"channel": ROOM}},
            {"history": {"channel": ROOM, "limit": -1}},
            {"history_remove": {"channel": ROOM}},
            {"history": {"channel": ROOM, "limit": -1}},
            {"disconnect": {"user": "42"}},
            {"refresh": {"user": "42"}},
            {"presence": {"channel": ROOM}},
            {"info": {}},
        ]
        replies = (await api.call("batch", commands=commands, parallel=True))["replies"]
        for command, reply in zip(commands, replies, strict=True):
            assert set(reply) <= {*command, "error"}
        assert replies[2] == {"channels": {"channels": {ROOM: {"num_clients": 1}}}}
        assert replies[4]["error"]["code"] == 102
        assert replies[8] == {"presence_stats": {"num_clients": 0, "num_users": 0}}
        assert [one["data"] for one in replies[9]["history"]["publications"]] == [1, 2, 3, 4]
        assert replies[11]["history"]["publications"] == []
        assert (await client.ended()).code == 3503
        pushes = list(client.pushes)
        assert [next(key for key in push if key != "channel") for push in pushes] == [
            "subscribe",
            "pub",
            "pub",
            "unsubscribe",
        ]
        assert [push["pub"]["data"] for push in pushes if "pub" in push] == [2, 3]


async def test_batch_is_limited() -> None:
    async with open_api(message_commands_max=3) as api:
        assert (await api.call("batch", commands=[]))["replies"] == []
        await refused(api.call("batch", commands=[{"info": {}}] * 4), 107, "message_commands_max = 3")
        await refused(api.call("broadcast", channels=["a"] * 4, data=1), 107, "message_commands_max = 3")
        assert len((await api.call("batch", commands=[{"info": {}}] * 3))["replies"]) == 3


# -- keys and methods

BODIES: dict[str, dict[str, Any]] = {
    "publish": {"channel": ROOM, "data": 1},
    "broadcast": {"channels": [ROOM], "data": 1},
    "subscribe": {"user": "1", "channel": ROOM},
    "unsubscribe": {"user": "1", "channel": ROOM},
    "disconnect": {"user": "1"},
    "refresh": {"user": "1"},
    "presence": {"channel": ROOM},
    "presence_stats": {"channel": ROOM},
    "history": {"channel": ROOM},
    "history_remove": {"channel": ROOM},
    "channels": {},
    "info": {},
    "batch": {"commands": []},
}
"""A body that each method takes."""

OPEN_TO = {
    PUBLISH: ("web", {"publish", "broadcast", "batch"}),
    READ: ("desk", {"presence", "presence_stats", "history", "channels", "info", "batch"}),
    ALL: ("boss", set(METHODS)),
}


async def test_scopes() -> None:
    assert set(BODIES) == set(METHODS)
    async with open_api() as api:
        for key, (name, methods) in OPEN_TO.items():
            for method, body in BODIES.items():
                batch = {"commands": [{method: body}]}
                if method in methods:
                    await api.call(method, key=key, **body)
                    if method != "batch":
                        (reply,) = (await api.call("batch", key=key, **batch))["replies"]
                        assert set(reply) == {method}
                else:
                    error = await refused(api.call(method, key=key, **body), 103, f"the key {name} may ")
                    assert set(error.message.partition(" may ")[2].split(", ")) == methods
                    (reply,) = (await api.call("batch", key=key, **batch))["replies"]
                    assert reply == {"error": {"code": 103, "message": error.message}}


async def test_what_is_refused_did_nothing() -> None:
    async with open_api() as api:
        await refused(api.call("publish", key=READ, channel=ROOM, data=1), 103)
        assert (await api.call("history", channel=ROOM))["offset"] == 0


@pytest.mark.parametrize(
    ("method", "member", "value", "empty"),
    [
        ("publish", "delta", True, False),
        ("publish", "version", 7, 0),
        ("publish", "version_epoch", "a", ""),
        ("broadcast", "delta", True, None),
        ("subscribe", "session", "s", ""),
        ("subscribe", "override", {"presence": {"value": True}}, {}),
        ("subscribe", "b64info", "AAAA", ""),
        ("subscribe", "b64data", "AAAA", None),
        ("unsubscribe", "session", "s", ""),
        ("disconnect", "session", "s", None),
        ("refresh", "session", "s", ""),
    ],
)
async def test_what_hubbub_does_not_have(method: str, member: str, value: object, empty: object) -> None:
    async with open_api() as api:
        await api.call(method, **{**BODIES[method], member: empty})
        await refused(api.call(method, **{**BODIES[method], member: value}), 108, f"not available: {member}")


SETTINGS = {"message_bytes_max": 1_000, "message_depth_max": 8}
DEEP: Any = 0
for _ in range(9):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("method", "body", "words"),
    [
        ("publish", {"channel": ""}, ["room name has 0 characters"]),
        ("publish", {"channel": "a" * 256}, ["room name has 256 characters"]),
        ("publish", {"channel": "a\n"}, ["U+000A"]),
        ("publish", {"data": "x" * 999}, ["data", "message_bytes_max = 1000"]),
        ("publish", {"data": "", "tags": {"a" * 500: "b" * 500}}, ["message_bytes_max = 1000"]),
        ("publish", {"data": DEEP}, ["message_depth_max = 8"]),
        ("publish", {"b64data": ""}, ["data and b64data"]),
        ("subscribe", {"info": "x" * 999}, ["info", "message_bytes_max"]),
        ("subscribe", {"data": DEEP}, ["message_depth_max"]),
        ("refresh", {"info": "x" * 999}, ["info", "message_bytes_max"]),
    ],
)
async def test_what_can_not_be_meant(method: str, body: dict[str, Any], words: Sequence[str]) -> None:
    async with open_api(**SETTINGS) as api:
        await refused(api.call(method, **{**BODIES[method], **body}), 107, *words)
        if method == "publish":
            responses = await api.call("broadcast", channels=["fine"], data=1)
            assert responses["responses"][0]["result"]["offset"] == 1


async def test_neither_data_nor_b64data() -> None:
    async with open_api() as api:
        await refused(api.call("publish", channel=ROOM), 107, "data is missing")
        await refused(api.call("broadcast", channels=[ROOM]), 107, "data is missing")
        await api.call("publish", channel=ROOM, b64data="")


async def test_largest_message() -> None:
    async with open_api(message_bytes_max=1_000) as api, open_peer(api.port, f"/chat/{ROOM}") as plain:
        await api.call("publish", channel=ROOM, data="x" * 998)
        assert await plain.receive() == "x" * 998
        await api.call("publish", channel=ROOM, b64data=base64.b64encode(b"x" * 1_000).decode())
        assert await plain.receive() == b"x" * 1_000
        await refused(
            api.call("publish", channel=ROOM, b64data=base64.b64encode(b"x" * 1_001).decode()), 107, "message_bytes_max"
        )


LATE = {"code": 100, "message": "internal server error: the hub didn't take it in time", "temporary": True}


async def test_hub_that_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer comes in time, and what wasn't taken is never carried out."""
    async with open_api(api_seconds_max=0.3, inbox_commands_max=2) as api:
        assert api.node is not None
        free = trio.Event()
        real = api.node.inbox.take

        async def take() -> Any:
            command = await real()
            await free.wait()
            return command

        await api.call("publish", channel=ROOM, data=-1)
        monkeypatch.setattr(api.node.inbox, "take", take)
        await api.call("publish", channel=ROOM, data=0)  # the hub takes this one as ever; the next one it holds
        late: list[int] = []
        done: list[int] = []

        async def publish(number: int) -> None:
            response = await api.post("publish", json.dumps({"channel": ROOM, "data": number}).encode())
            if "error" in response.json():
                assert response.json()["error"] == LATE
            (late if "error" in response.json() else done).append(number)

        async with trio.open_nursery() as nursery:
            for number in range(1, 11):
                nursery.start_soon(publish, number)
            with trio.fail_after(5):
                while len(late) < 7:
                    await trio.sleep(0.05)
            monkeypatch.undo()
            free.set()
        past = await api.call("history", channel=ROOM, limit=-1)
        assert {one["data"] for one in past["publications"]} == {-1, 0, *done}
        assert not set(done) & set(late)
        assert len(late) + len(done) == 10


async def test_connections_that_end_meanwhile() -> None:
    """What is asked for them is a success all the same; and nothing waits for them."""
    async with open_api(**SECURE) as api:
        for _ in range(20):
            async with open_structured(api.port, connected=False) as client:
                await client.connect(token=token())
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.peer.stream.aclose)  # type: ignore[attr-defined]
                    for method in ("subscribe", "unsubscribe", "refresh", "disconnect"):
                        nursery.start_soon(_call, api, method)


async def _call(api: Any, method: str) -> None:
    more = {"channel": ROOM} if "subscribe" in method else {}
    with trio.fail_after(10):
        try:
            await api.call(method, user="42", **more)
        except ApiError as error:
            assert error.code == 105, error  # noqa: PT017 - or there is none


def test_description() -> None:
    """It has every method, and nothing else."""
    description = json.loads(describe())
    assert set(description["paths"]) == {f"/api/{name}" for name in METHODS}
    for name in METHODS:
        (operation,) = description["paths"][f"/api/{name}"].values()
        assert operation["summary"]
        assert set(operation["responses"]) == {"200", "400", "401", "404", "405", "413", "503"}
    assert set(description["components"]["schemas"]["Command"]["properties"]) == set(METHODS) - {"batch"}


async def test_closing_is_heard_before_the_answer() -> None:
    """Once a disconnect is answered, the connection takes no command any more."""
    async with open_api() as api, open_structured(api.port) as client:
        await api.call("disconnect", user="", client=client.client)
        with pytest.raises(Closed):
            await client.goes_on()
