"""The server API as HTTP: keys, bodies, pipelining, its own address, reload, drain; and its description, tried out."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from apis import ALL, KEYS, PUBLISH, READ, open_api, open_back_end
from hubbub.auth.api_keys import find_key
from hubbub.config_sources import ConfigError, load
from hubbub.web.api.api import DESCRIPTION_PATH
from hubbub.web.api.methods import METHODS
from hubbub.web.http import HttpError, Request
from hubbub.web.routes import Door, House, Visit
from peers import SECONDS_MAX, HandshakeRefused, connect, open_peer
from servers import elsewhere, open_daemon, until_quiet
from structured import open_structured
from test_front_door import HOST, head, open_client, sentence
from test_reload import open_reloadable
from test_shutdown import answer, free_port

ROOM = "room"
CALL = {"channel": ROOM, "data": 1}


def post(method: str, body: bytes, *fields: str, key: str = ALL) -> bytes:
    """A call as bytes."""
    fields = (HOST, f"X-API-Key: {key}", f"Content-Length: {len(body)}", *fields)
    return head(f"POST /api/{method} HTTP/1.1", *fields) + body


# -- keys


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong-0123456789abcdef"},
        {"X-API-Key": ALL[:-1]},
        {"X-API-Key": ALL + "x"},
        {"X-API-Key": ALL.upper()},
        {"X-API-Key": "boss"},
        {"X-API-Key": KEYS[0]},
        {"X-API-Key": f"apikey {ALL}"},
        {"X-API-Key": "\xff" * 20},
        {"Authorization": "apikey"},
        {"Authorization": f"apikey {ALL[:-1]}"},
        {"Authorization": f"apikey {ALL} {ALL}"},
        {"Authorization": f"Bearer {ALL}"},
        {"Authorization": ALL},
        {"X-API-Key": "wrong-0123456789abcdef", "Authorization": f"apikey {ALL}"},
    ],
)
async def test_wrong_keys(headers: dict[str, str]) -> None:
    async with open_api() as api:
        raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
        for body in (json.dumps(CALL).encode(), b"garbage"):
            response = await api.http.post("/api/publish", content=body, headers=raw)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "apikey"
            assert "X-API-Key: KEY" in response.text
            assert ALL not in response.text
        assert (await api.call("history", channel=ROOM))["offset"] == 0


async def test_two_keys_are_none() -> None:
    async with open_api() as api, open_client(api.port) as client:
        await client.send(post("info", b"{}", f"X-API-Key: {ALL}"))
        assert sentence(await client.answer()).startswith("key: got 2 keys")
        await client.goes_on()


@pytest.mark.parametrize(
    "field", [f"X-API-Key: {ALL}", f"Authorization: apikey {ALL}", f"authorization: APIKEY  {ALL}"]
)
async def test_places_of_the_key(field: str) -> None:
    async with open_api() as api, open_client(api.port) as client:
        await client.send(head("POST /api/info HTTP/1.1", HOST, field, "Content-Length: 2") + b"{}")
        assert (await client.answer()).status == 200


async def test_another_authorization_does_not_matter() -> None:
    """A proxy may have its own."""
    async with open_api() as api, open_client(api.port) as client:
        await client.send(post("info", b"{}", "Authorization: Basic Zm9vOmJhcg=="))
        assert (await client.answer()).status == 200


def test_every_key_is_compared() -> None:
    for entry in KEYS:
        name, scope, text = entry.split(":", 2)
        key = find_key(KEYS, text.encode())
        assert key is not None
        assert (key.name, key.scope) == (name, scope)
    colons = find_key(["a:all:x:y:z-0123456789abcdef"], b"x:y:z-0123456789abcdef")
    assert colons is not None
    assert find_key(KEYS, b"") is find_key([], b"") is find_key([], ALL.encode()) is None


async def test_without_keys_there_is_no_api() -> None:
    async with open_api(api_keys=[]) as api:
        for path in ("publish", "nothing", "openapi.json"):
            response = await api.post(path, b"{}")
            assert response.status_code == 404
            assert "api_keys" in response.text
        assert (await api.http.get(DESCRIPTION_PATH)).status_code == 404
        assert "/api/" not in (await api.http.get("/nothing")).text


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("API_KEYS", f"a:all:{ALL},b:read:{READ},a:read:{PUBLISH}", 'got "a" twice, allowed: each NAME once'),
        ("API_KEYS", f"{ALL},{ALL}", "got what isn't shown, allowed: a list of NAME:SCOPE:KEY"),
        ("API_KEYS", "a:all:short", "got what isn't shown, allowed: a list of NAME:SCOPE:KEY"),
        ("API_ADDRESS", "localhost:65536", 'got "localhost:65536", allowed: a port from 0 to 65535'),
        ("API_ADDRESS", "localhost", 'got "localhost", allowed: HOST:PORT, or nothing'),
    ],
)
def test_mistakes_in_settings(name: str, value: str, says: str) -> None:
    """Each is one line, which never shows a key."""
    with pytest.raises(ConfigError) as caught:
        load(None, {f"HUBBUB_{name}": value}, {})
    (problem,) = caught.value.problems
    assert problem.startswith(f"HUBBUB_{name}: {says}")
    assert ALL not in problem


# -- what isn't a request


async def test_methods() -> None:
    async with open_api() as api:
        for verb in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
            response = await api.http.request(verb, "/api/publish", headers={"X-API-Key": ALL})
            assert (response.status_code, response.headers["allow"]) == (405, "POST")
        response = await api.http.post(DESCRIPTION_PATH, content=b"{}")
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
        for path in ("nothing", "publish/", "publish/x", "", "Publish", "%70ublish"):
            response = await api.post(path, b"{}")
            assert response.status_code == 404
            assert ", ".join(METHODS) in response.text
        assert "/api/METHOD" in (await api.http.get("/nothing")).text
        assert (await api.http.post("/api", content=b"{}")).status_code == 404
        response = await api.http.post("/api/publish?a=b", json=CALL, headers={"X-API-Key": ALL})
        assert response.status_code == 200


MALFORMED: dict[str, tuple[str, bytes, str]] = {
    "nothing": ("publish", b"", "truncated"),
    "no JSON": ("publish", b"channel=room&data=1", "malformed"),
    "half of it": ("publish", b'{"channel":"room","data":', "truncated"),
    "more than it": ("publish", b'{"channel":"room","data":1}{}', "trailing"),
    "array": ("publish", b"[]", "Expected `object`, got `array`"),
    "string": ("info", b'"a"', "Expected `object`, got `str`"),
    "null": ("info", b"null", "Expected `object`, got `null`"),
    "missing member": ("publish", b'{"data":1}', "missing required field `channel`"),
    "missing user": ("disconnect", b"{}", "missing required field `user`"),
    "unknown member": ("publish", b'{"channel":"room","date":1}', "unknown field `date`"),
    "unknown member of a member": ("history", b'{"channel":"a","since":{"x":1}}', "unknown field `x` - at `$.since`"),
    "wrong type": ("publish", b'{"channel":7,"data":1}', "Expected `str`, got `int` - at `$.channel`"),
    "wrong type of a tag": ("publish", b'{"channel":"a","data":1,"tags":{"a":1}}', "at `$.tags[...]`"),
    "null as room": ("publish", b'{"channel":null,"data":1}', "at `$.channel`"),
    "number as switch": ("publish", b'{"channel":"a","data":1,"skip_history":1}', "at `$.skip_history`"),
    "negative offset": ("history", b'{"channel":"a","since":{"offset":-1}}', "at `$.since.offset`"),
    "endless limit": ("history", b'{"channel":"a","limit":1e999}', "at `$.limit`"),
    "large limit": ("history", b'{"channel":"a","limit":9007199254740993000}', "at `$.limit`"),
    "long epoch": ("history", b'{"channel":"a","since":{"epoch":"%s"}}' % (b"x" * 65), "at `$.since.epoch`"),
    "long pattern": ("channels", b'{"pattern":"%s"}' % (b"x" * 256), "at `$.pattern`"),
    "NaN": ("publish", b'{"channel":"a","data":NaN}', "malformed"),
    "Infinity": ("publish", b'{"channel":"a","data":[-Infinity]}', "malformed"),
    "raw newline": ("publish", b'{"channel":"a","data":"\n"}', "malformed"),
    "no UTF-8": ("publish", b'{"channel":"a","data":"\xff"}', "UTF-8"),
    "no UTF-8 in a room": ("publish", b'{"channel":"\xe2\x82","data":1}', "UTF-8"),
    "UTF-16": ("publish", json.dumps(CALL).encode("utf-16"), "malformed"),
    "byte order mark": ("publish", b"\xef\xbb\xbf{}", "malformed"),
    "half a surrogate": ("publish", b'{"channel":"a","data":"\\ud800 and more"}', "surrogate"),
    "the other half": ("publish", b'{"channel":"a","data":["\\udc00 and more"]}', "surrogate"),
    "half a surrogate as a name": ("publish", b'{"channel":"a","data":{"\\ud800 and more":1}}', "surrogate"),
    "half a surrogate as a tag": ("publish", b'{"channel":"a","data":1,"tags":{"a":"\\ud800 and"}}', "surrogate"),
    "bottomless": ("publish", b'{"channel":"a","data":%s}' % (b"[" * 100_000 + b"]" * 100_000), "deep"),
    "commands of another kind": ("batch", b'{"commands":{}}', "at `$.commands`"),
    "empty command": ("batch", b'{"commands":[{"info":{}},{}]}', "exactly one method - at `$.commands[1]`"),
    "two in one": ("batch", b'{"commands":[{"info":{},"channels":{}}]}', "exactly one method"),
    "command of null": ("batch", b'{"commands":[{"info":null}]}', "at `$.commands[0].info`"),
    "unknown command": ("batch", b'{"commands":[{"publsh":{}}]}', "unknown field `publsh`"),
    "batch in a batch": ("batch", b'{"commands":[{"batch":{"commands":[]}}]}', "unknown field `batch`"),
    "malformed behind a good one": (
        "batch",
        b'{"commands":[{"publish":{"channel":"room","data":1}},{"publish":{"channel":1}}]}',
        "at `$.commands[1].publish.channel`",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed(name: str) -> None:
    """A status, a line that says what; nothing is done, and the connection goes on."""
    method, body, words = MALFORMED[name]
    async with open_api() as api, open_client(api.port) as client:
        await client.send(post(method, body))
        refusal = await client.answer()
        assert refusal.status == 400
        assert words in sentence(refusal)
        await client.goes_on()
        assert (await api.call("history", channel=ROOM))["offset"] == 0


async def test_long_unknown_member_is_not_repeated_in_full() -> None:
    async with open_api() as api:
        response = await api.post("info", b'{"%s\\n":1}' % (b"x" * 10_000))
        assert response.status_code == 400
        assert len(response.text) < 300
        assert response.text.count("\n") == 1


async def test_member_given_twice() -> None:
    """The last one counts, as everywhere in hubbub."""
    async with open_api() as api:
        await api.post("publish", b'{"channel":"a","channel":"room","data":1,"data":2}')
        assert (await api.call("history", channel=ROOM, limit=1))["publications"][0]["data"] == 2


# -- bodies


def fitting(size: int) -> bytes:
    """A call of that many bytes, that publishes little."""
    body = json.dumps(CALL).encode()
    return body + b" " * (size - len(body))


@pytest.mark.parametrize("size", [65_536, 65_537, 300_000, 1_048_576])
@pytest.mark.parametrize("chunked", [False, True])
async def test_large_bodies(size: int, chunked: bool) -> None:
    async with open_api() as api, open_client(api.port) as client:
        await client.send(chunks(fitting(size)) if chunked else post("publish", fitting(size)))
        assert json.loads((await client.answer()).body)["result"]["offset"] == 1
        await client.goes_on()


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_bodies(chunked: bool) -> None:
    async with open_api(api_body_bytes_max=70_000) as api, open_client(api.port) as client:
        await client.send(chunks(fitting(70_000)) if chunked else post("publish", fitting(70_000)))
        assert (await client.answer()).status == 200
        await client.send(chunks(fitting(70_001)) if chunked else post("publish", fitting(70_001)))
        refusal = await client.answer()
        assert (refusal.status, sentence(refusal)) == (413, "body is over 70000 bytes")
        assert refusal.headers["connection"] == "close"
        assert (await api.call("history", channel=ROOM))["offset"] == 1


@pytest.mark.parametrize("method", ["publish", "nothing"])
async def test_without_a_key_a_body_is_thrown_away(method: str) -> None:
    """Up to body_bytes_max, so that the connection can go on; nothing larger is even read."""
    async with open_api() as api, open_client(api.port) as client:
        await client.send(post(method, b"x" * 65_536, key="wrong"))
        assert (await client.answer()).status == (401 if method == "publish" else 404)
        await client.goes_on()
        await client.send(post(method, b"x" * 65_537, key="wrong"))
        assert (await client.answer()).status == 413


def chunks(body: bytes, size: int = 10_000) -> bytes:
    """A call whose body comes in chunks."""
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    encoded = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    return head("POST /api/publish HTTP/1.1", HOST, f"X-API-Key: {ALL}", "Transfer-Encoding: chunked") + encoded


async def test_expect_continue() -> None:
    async with open_api() as api, open_client(api.port) as client:
        request = post("publish", json.dumps(CALL).encode(), "Expect: 100-continue")
        start, _, body = request.partition(b"\r\n\r\n")
        await client.send(start + b"\r\n\r\n")
        assert (await client.answer(bodiless=True)).status == 100
        await client.send(body)
        assert (await client.answer()).status == 200
        await client.goes_on()


async def test_slow_body() -> None:
    async with open_api(head_seconds_max=0.5) as api, open_client(api.port) as client:
        await client.send(post("publish", json.dumps(CALL).encode())[:-1])
        assert (await client.answer()).status == 408
        assert (await api.call("history", channel=ROOM))["offset"] == 0


@pytest.mark.no_cover  # twice as fast; other tests reach the same lines
async def test_a_thousand_requests_at_once() -> None:
    """They are answered in their order, and meanwhile others are served."""
    async with open_api() as api, open_client(api.port) as client, open_client(api.port) as other:
        bodies = [json.dumps({"channel": ROOM, "data": number}).encode() for number in range(1_000)]
        others = 0

        async def ask_on(scope: trio.CancelScope) -> None:
            nonlocal others
            with scope:
                while True:
                    await other.goes_on()
                    others += 1

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(ask_on, scope)
            nursery.start_soon(client.send, b"".join(post("publish", body) for body in bodies))
            offsets = [json.loads((await client.answer()).body)["result"]["offset"] for _ in bodies]
            scope.cancel()
        assert offsets == list(range(1, 1_001))
        assert others > 20
        past = await api.call("history", channel=ROOM, limit=2, reverse=True)
        assert [one["data"] for one in past["publications"]] == [999, 998]


async def test_refusals_and_answers_on_one_connection() -> None:
    async with open_api() as api, open_client(api.port) as client:
        await client.send(
            post("info", b"{}")
            + post("info", b"{}", key="wrong")
            + post("info", b"garbage")
            + post("nothing", b"{}")
            + head("GET /health HTTP/1.1", HOST)
            + head(f"HEAD {DESCRIPTION_PATH} HTTP/1.1", HOST)
        )
        assert [(await client.answer()).status for _ in range(5)] == [200, 401, 400, 404, 200]
        described = await client.answer(bodiless=True)
        assert (described.status, described.headers["content-type"]) == (200, "application/json")
        await client.goes_on()


async def test_caller_that_leaves_before_the_answer() -> None:
    async with open_api() as api:
        for _ in range(20):
            stream = await connect(api.port)
            await stream.send_all(post("publish", json.dumps(CALL).encode()))
            await trio.aclose_forcefully(stream)
        assert api.node is not None
        with trio.fail_after(SECONDS_MAX):
            while (await api.call("history", channel=ROOM))["offset"] < 20:
                await trio.sleep(0.01)
        await api.http.aclose()
        await until_quiet(api.node)


# -- doors


async def test_foreign_host() -> None:
    async with open_api() as api, open_client(api.port) as client:
        await client.send(head("POST /api/info HTTP/1.1", "Host: example.com", f"X-API-Key: {ALL}"))
        assert (await client.answer()).status == 421


async def test_full_house() -> None:
    """At the public door the API has no privileges."""
    async with open_api(connections_max=1) as api, open_client(api.port) as client, open_client(api.port) as late:
        await client.goes_on()
        await late.send(post("info", b"{}"))
        assert (await late.answer()).status == 503


async def test_api_address() -> None:
    """There and only there is the API, with /health; with room of its own when the house is full."""
    door = free_port()
    settings = {"api_keys": ",".join(KEYS), "api_address": f"127.0.0.1:{door}", "connections_max": 1}
    with open_daemon(**settings, connections_spare=1) as daemon:
        async with open_back_end(door) as api, open_back_end(daemon.port) as public:
            assert (await public.post("info", b"{}")).status_code == 404
            assert "/api/" not in (await public.post("info", b"{}")).text
            assert (await public.http.get(DESCRIPTION_PATH)).status_code == 404
            assert (await api.post("info", b"{}", key="")).status_code == 401
            assert (await api.http.get(DESCRIPTION_PATH)).status_code == 200
            for path in ("/", "/metrics", "/chat", "/connection/websocket"):
                assert answer(door, path) == (
                    404,
                    "404 Not Found: there is nothing here; there are /health, /api/METHOD\n",
                )
            assert answer(door, "/health") == (200, "ok\n")
            assert answer(door, "/health", "evil.example")[0] == 200
            assert answer(door, DESCRIPTION_PATH, "evil.example")[0] == 421
            with pytest.raises(HandshakeRefused):
                async with open_peer(door):
                    pytest.fail("nobody chats here")
            await public.http.aclose()
            async with open_peer(daemon.port, f"/chat/{ROOM}") as peer:
                await api.call("publish", channel=ROOM, data="hello")
                assert await peer.receive() == "hello"
                idlers = [await connect(door) for _ in range(60)]
                await api.call("publish", channel=ROOM, data="again")
                assert await peer.receive() == "again"
                for idler in idlers:
                    await trio.aclose_forcefully(idler)


async def test_api_and_metrics_have_doors_of_their_own() -> None:
    door, operators = free_port(), free_port()
    settings = {"api_address": f"127.0.0.1:{door}", "metrics_address": f"127.0.0.1:{operators}"}
    with open_daemon(api_keys=",".join(KEYS), **settings):
        async with open_back_end(door) as api, open_back_end(operators) as metrics:
            await api.call("info")
            assert (await metrics.post("info", b"{}")).status_code == 404
            assert (await metrics.http.get("/metrics")).status_code == 200
            assert (await api.http.get("/metrics")).status_code == 404


async def test_reload(tmp_path: Path) -> None:
    """A new key is good at once, and an old one isn't any more: on connections that are open, too."""
    with open_reloadable(tmp_path, f'api_keys = ["boss:all:{ALL}"]\n') as server:
        async with open_back_end(server.daemon.port) as api:
            await api.call("info")
            await server.reload(f'api_keys = ["boss:all:new-{ALL}", "desk:read:{READ}"]\n')
            assert (await api.post("info", b"{}")).status_code == 401
            await api.call("info", key=f"new-{ALL}")
            await api.call("info", key=READ)
            await server.reload("api_keys = []\n")
            assert (await api.post("info", b"{}", key=READ)).status_code == 404
            entry = await server.reload('api_keys = ["boss:some:thirty"]\n', "reload failed; nothing is changed")
            assert "thirty" not in json.dumps(entry)
            entry = await server.reload(
                f'api_keys = ["a:all:{ALL}", "a:read:{READ}"]\n', "reload failed; nothing is changed"
            )
            assert '"a" twice' in json.dumps(entry).replace('\\"', '"')
            assert ALL not in json.dumps(entry)


async def test_draining() -> None:
    """What was asked in full has been answered; who was still asking is let go."""
    with open_daemon(api_keys=",".join(KEYS)) as daemon:
        async with open_structured(daemon.port), open_client(daemon.port) as client:
            await client.send(post("publish", json.dumps(CALL).encode()))
            assert (await client.answer()).status == 200
            await client.send(post("publish", json.dumps(CALL).encode())[:-1])
            await trio.sleep(0.2)
            daemon.process.send_signal(signal.SIGTERM)
            await client.ends()
        assert await elsewhere(daemon.process.wait) == 0


async def test_call_while_draining() -> None:
    """Whoever is heard then gets 503; what has been let in before is carried out."""
    async with open_api() as api, open_client(api.port) as client:
        assert api.node is not None
        await client.goes_on()
        await client.send(post("publish", json.dumps(CALL).encode()) + post("publish", json.dumps(CALL).encode()))
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 200
        house = House(draining=True, serving=1, websockets=0)
        request = Request("POST", "/api/publish", "1.1", [("host", "localhost"), ("x-api-key", ALL)])
        for door in (Door.PUBLIC, Door.API):
            visit = Visit("127.0.0.1", "127.0.0.1", "127.0.0.1", tls=False, door=door)
            with pytest.raises(HttpError, match="shutting down") as refused:
                api.node.front_door._routes.decide(request, b"", visit, house)
            assert refused.value.response.status == 503


def test_no_key_is_ever_logged() -> None:
    """Not at the debug level either, whoever shows what."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hubbub", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HUBBUB_API_KEYS": ",".join(KEYS), "HUBBUB_LOG_LEVEL": "debug"},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        for key in (ALL, PUBLISH, ALL[:-1], f"{READ} {READ}"):
            for path in ("info", "publish", f"nothing?{ALL}"):
                for body in (b"{}", b"garbage"):
                    httpx.post(f"{url}/api/{path}", content=body, headers={"X-API-Key": key}, trust_env=False)
                    httpx.post(
                        f"{url}/api/{path}", content=body, headers={"Authorization": f"apikey {key}"}, trust_env=False
                    )
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=SECONDS_MAX)
    finally:
        process.kill()
    assert '"key": "desk"' in errors or '"key": "boss"' in errors
    for entry in KEYS:
        key = entry.split(":", 2)[2]
        assert key not in errors
        assert key[:-1] not in errors


# -- the description


async def test_description_is_served() -> None:
    async with open_api() as api:
        response = await api.http.get(DESCRIPTION_PATH)
        assert response.headers["content-type"] == "application/json"
        assert set(response.json()["paths"]) == {f"/api/{name}" for name in METHODS}
        assert response.json()["openapi"].startswith("3.1")
        assert (await api.http.head(DESCRIPTION_PATH)).status_code == 200


FUZZING_SECONDS_MAX = 80


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    """It reads the description, and sees whether the server does as that says, whatever it is sent."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "run"]
    options = ["--max-examples=20", "--seed=1", "--workers=1", "--generation-database=none", "--checks=all"]
    with open_daemon(api_keys=",".join(KEYS), connections_per_address_max=10_000) as daemon:
        result = subprocess.run(
            [*command, f"{daemon.url}{DESCRIPTION_PATH}", f"--header=X-API-Key: {ALL}", *options],
            capture_output=True,
            text=True,
            timeout=FUZZING_SECONDS_MAX,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "NO_COLOR": "1"},
        )
        assert result.returncode == 0, result.stdout[-8_000:] + result.stderr[-2_000:]
        assert daemon.metrics()["hubbub_internal_errors_total"] == 0
