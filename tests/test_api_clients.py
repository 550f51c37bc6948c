"""The server API by those who use it: `curl`, and Centrifugo's own library for Python, unchanged."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import cent
import pytest
import trio
from cent.exceptions import CentApiResponseError, CentTransportError, CentUnauthorizedError

from apis import ALL, BackEnd, open_api
from hubbub.web.api.methods import METHODS
from peers import SECONDS_MAX
from signing import SECRET, sign
from structured import Client, open_structured
from tools import need

ROOM = "room"
SECURE = {"insecure": False, "token_hmac_secret": SECRET}
TOKEN = sign({"sub": "42"})


def curl(port: int, method: str, body: str, *flags: str) -> dict[str, Any]:
    """Call a method as one does by hand."""
    command = [need("curl"), "--silent", "--show-error", "--fail", "--max-time", str(SECONDS_MAX), *flags]
    command += ["--header", f"X-API-Key: {ALL}", "--data-binary", "@-", f"http://127.0.0.1:{port}/api/{method}"]
    result = subprocess.run(command, input=body, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


async def test_every_method_by_curl() -> None:
    async with open_api(**SECURE) as api, open_structured(api.port, connected=False) as client:
        await client.connect(token=TOKEN)
        called = []

        async def call(method: str, body: str, *flags: str) -> Any:
            called.append(method)
            answer = await trio.to_thread.run_sync(curl, api.port, method, body, *flags)
            return answer if method == "batch" else answer["result"]

        assert await call("subscribe", '{"user": "42", "channel": "room"}') == {}
        assert (await client.push())["channel"] == ROOM
        assert (await call("publish", '{"channel": "room", "data": {"text": "hello"}}'))["offset"] == 1
        assert (await client.publication(ROOM))["data"] == {"text": "hello"}
        result = await call("broadcast", '{"channels": ["room", "b"], "data": "to all"}')
        assert [response["result"]["offset"] for response in result["responses"]] == [2, 1]
        assert (await client.publication(ROOM))["data"] == "to all"
        assert list((await call("presence", '{"channel": "room"}'))["presence"]) == [client.client]
        assert await call("presence_stats", '{"channel": "room"}') == {"num_clients": 1, "num_users": 1}
        assert len((await call("history", '{"channel": "room", "limit": 10}'))["publications"]) == 2
        assert await call("channels", '{"pattern": "r*"}') == {"channels": {ROOM: {"num_clients": 1}}}
        assert (await call("info", "{}"))["nodes"][0]["num_clients"] == 1
        assert await call("history_remove", '{"channel": "room"}') == {}
        assert await call("unsubscribe", '{"user": "42", "channel": "room"}') == {}
        assert (await client.push())["unsubscribe"]["code"] == 2000
        assert await call("refresh", '{"user": "42"}') == {}
        replies = (await call("batch", '{"commands": [{"info": {}}, {"history": {"channel": "b"}}]}'))["replies"]
        assert [next(iter(reply)) for reply in replies] == ["info", "history"]
        large = json.dumps({"channel": "c", "data": 1}) + " " * 1_000_000
        assert (await call("publish", large, "--header", "Expect: 100-continue"))["offset"] == 1
        chunked = ("--header", "Transfer-Encoding: chunked")
        assert (await call("publish", '{"channel": "c", "data": 2}', *chunked))["offset"] == 2
        assert await call("disconnect", '{"user": "42", "disconnect": {"code": 4001, "reason": "bye"}}') == {}
        assert (await client.ended()).code == 4001
        assert set(called) == set(METHODS)


class Library:
    """Centrifugo's library, whose calls wait, in threads."""

    def __init__(self, api: BackEnd, key: str = ALL) -> None:
        self.client = cent.Client(f"http://127.0.0.1:{api.port}/api", key, timeout=SECONDS_MAX)
        self.called: set[str] = set()

    async def call(self, request: Any) -> Any:
        """Call the method that a request is for."""
        method = request.__api_method__
        self.called.add(method)
        send: Callable[[Any], Any] = getattr(self.client, method)
        return await trio.to_thread.run_sync(send, request)


async def test_every_method_by_cent() -> None:
    async with open_api(**SECURE) as api, open_structured(api.port, connected=False) as client:
        await client.connect(token=TOKEN)
        library = Library(api)
        with library.client:
            await use_rooms(library, client)
            await use_users(library, client)
        assert library.called == set(METHODS)


async def use_rooms(library: Library, client: Client) -> None:
    """Publish, and look."""
    await library.call(cent.SubscribeRequest(user="42", channel=ROOM, data={"a": 1}, info={"name": "Ann"}))
    assert (await client.push())["subscribe"]["data"] == {"a": 1}
    published = await library.call(
        cent.PublishRequest(channel=ROOM, data={"a": 1}, tags={"b": "c"}, idempotency_key="k", skip_history=False)
    )
    assert published.offset == 1
    again = await library.call(cent.PublishRequest(channel=ROOM, data=2, idempotency_key="k"))
    assert again == published
    passing = await library.call(cent.PublishRequest(channel=ROOM, data=None, b64data="AAEC", skip_history=True))
    assert passing.offset == 0
    assert [(await client.publication(ROOM))["data"] for _ in range(2)] == [{"a": 1}, {"b64": "AAEC"}]
    responses = (await library.call(cent.BroadcastRequest(channels=["b", ""], data=[1]))).responses
    assert responses[0].result.offset == 1
    assert responses[1].error.code == 107
    past = await library.call(cent.HistoryRequest(channel=ROOM, limit=10, since=cent.StreamPosition(offset=0)))
    assert [(one.data, one.tags, one.offset) for one in past.publications] == [({"a": 1}, {"b": "c"}, 1)]
    presence = (await library.call(cent.PresenceRequest(channel=ROOM))).presence
    assert presence[client.client].chan_info == {"name": "Ann"}
    assert (await library.call(cent.PresenceStatsRequest(channel=ROOM))).num_clients == 1
    rooms = (await library.call(cent.ChannelsRequest(pattern="ro*"))).channels
    assert {name: room.num_clients for name, room in rooms.items()} == {ROOM: 1}
    (node,) = (await library.call(cent.InfoRequest())).nodes
    assert (node.num_clients, node.num_users, node.num_channels, node.num_subs) == (1, 1, 1, 1)
    await library.call(cent.HistoryRemoveRequest(channel=ROOM))
    with pytest.raises(CentApiResponseError) as refused:
        await library.call(cent.HistoryRequest(channel="nowhere:a"))
    assert refused.value.code == 102


async def use_users(library: Library, client: Client) -> None:
    """Do something to a user."""
    commands = [
        cent.PublishRequest(channel=ROOM, data="from a batch"),
        cent.PresenceStatsRequest(channel=ROOM),
        cent.UnsubscribeRequest(user="42", channel=ROOM),
    ]
    first, second, _ = (await library.call(cent.BatchRequest(requests=commands, parallel=True))).replies
    assert (first.offset, second.num_users) == (2, 1)
    assert (await client.publication(ROOM))["data"] == "from a batch"
    assert (await client.push())["unsubscribe"]["code"] == 2000
    await library.call(cent.SubscribeRequest(user="42", channel=ROOM))
    await client.push()
    await library.call(cent.UnsubscribeRequest(user="42", channel=ROOM, client=client.client))
    assert (await client.push())["unsubscribe"]["code"] == 2000
    await library.call(cent.RefreshRequest(user="42", expire_at=4_000_000_000))
    await client.goes_on()
    farewell = cent.Disconnect(code=4500, reason="bye")
    await library.call(cent.DisconnectRequest(user="42", whitelist=["nobody"], disconnect=farewell))
    closed = await client.ended()
    assert (closed.code, closed.reason) == (4500, "bye")


async def test_cent_is_told_what_it_may_not() -> None:
    async with open_api() as api:
        library = Library(api, "wrong-0123456789abcdef")
        with library.client, pytest.raises(CentUnauthorizedError):
            await library.call(cent.InfoRequest())
        library = Library(api)
        with library.client:
            with pytest.raises(CentApiResponseError) as refused:
                await library.call(cent.UnsubscribeRequest(user="42", channel=ROOM, session="s"))
            assert refused.value.code == 108
            with pytest.raises(CentTransportError) as unknown:
                await library.call(cent.ConnectionsRequest(user="42", expression=""))
            assert unknown.value.status_code == 404
