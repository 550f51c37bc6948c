"""SIGHUP: the running daemon takes its settings and its certificate anew, or says what is wrong and changes nothing."""

import contextlib
import json
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import trio
import trustme
from structlog.testing import capture_logs

from hubbub.config import FIXED, Settings
from hubbub.config_change import change
from hubbub.config_types import Namespace
from peers import SECONDS_MAX, Closed, HandshakeRefused, Peer, connect, handshake, open_peer, shake_hands
from servers import Daemon, open_daemon
from worlds import World, open_world

Entry = dict[str, object]


class Reloadable(NamedTuple):
    """A daemon and its file."""

    daemon: Daemon
    file: Path

    async def reload(self, toml: str | bytes, event: str = "reloaded") -> Entry:
        """Replace the file, send SIGHUP, return what is logged of it."""
        self.file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        return await self.hang_up(event)

    async def hang_up(self, event: str = "reloaded") -> Entry:
        """Send SIGHUP, return what is logged of it."""
        self.daemon.process.send_signal(signal.SIGHUP)
        return await logged(self.daemon, event)


async def logged(daemon: Daemon, event: str) -> Entry:
    """Wait for an event in the daemon's log."""

    def read() -> Entry:
        assert daemon.process.stderr is not None
        for line in daemon.process.stderr:
            entry: Entry = json.loads(line)
            if entry["event"] == event:
                return entry
        pytest.fail(f"the daemon has ended without {event!r}")

    with trio.fail_after(SECONDS_MAX):
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)


@contextlib.contextmanager
def open_reloadable(folder: Path, toml: str, *flags: str, **settings: object) -> Iterator[Reloadable]:
    """A daemon with a configuration file."""
    file = folder / "hubbub.toml"
    file.write_text(toml)
    with open_daemon("--config", str(file), *flags, **settings) as daemon:
        yield Reloadable(daemon, file)


async def said(peer: Peer, text: str) -> None:
    """See that a message comes back."""
    await peer.send(text)
    assert await peer.receive() == text


async def takes(port: int, count: int) -> bool:
    """Whether a message of so many bytes is published."""
    async with open_peer(port, "/chat/elsewhere") as peer:
        await peer.send(count * "x")
        with contextlib.suppress(Closed):
            return await peer.receive() == count * "x"
    return False


async def status_of(port: int, host: str = "localhost", origin: str | None = None) -> int:
    """What a handshake is answered with."""
    stream = await connect(port)
    try:
        await shake_hands(stream, handshake(host=host, headers=(("Origin", origin),) if origin else ()))
    except HandshakeRefused as refused:
        return refused.status
    finally:
        await trio.aclose_forcefully(stream)
    return 101


# -- which settings can change


def another(name: str) -> object:
    """A value that isn't the default; nothing here looks at what it means."""
    value = getattr(Settings(), name)
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case list():
            return ["other"]
        case dict():
            return {"other": Namespace(history_size=5)}
    return f"{value}x"


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_change_of_one_setting(name: str) -> None:
    """It is taken, or it needs a restart and stays as it was."""
    running, before, wanted = Settings(), Settings(), Settings()
    setattr(wanted, name, another(name))
    fixed = name in FIXED
    assert change(running, before, wanted) == (([], [name]) if fixed else ([name], []))
    assert running == (Settings() if fixed else wanted)
    assert change(running, wanted, wanted) == ([], [])


def test_what_was_made_to_fit_is_no_change() -> None:
    """A running setting may differ from what was asked for; only what is asked for anew counts."""
    running, before, wanted = Settings(connections_max=10), Settings(), Settings(rooms_max=5)
    assert change(running, before, wanted) == (["rooms_max"], [])
    assert running == Settings(connections_max=10, rooms_max=5)


def test_change_of_everything() -> None:
    """All that can be taken is taken; what was wanted isn't touched."""
    wanted = Settings(**{name: another(name) for name in Settings.__struct_fields__})  # type: ignore[arg-type]
    running, kept = Settings(), msgspec.structs.replace(wanted)
    changed, need_restart = change(running, Settings(), wanted)
    assert wanted == kept
    assert set(need_restart) == FIXED
    assert sorted(changed + need_restart) == sorted(Settings.__struct_fields__)
    assert all(getattr(running, name) == getattr(wanted, name) for name in changed)
    assert all(getattr(running, name) == getattr(Settings(), name) for name in need_restart)


def test_change_of_nothing() -> None:
    """Equal settings are no change, whatever objects they are."""
    assert change(Settings(), Settings(allowed_hosts=["a", "b"]), Settings(allowed_hosts=["a", "b"])) == ([], [])


def test_every_fixed_setting_exists() -> None:
    """A misspelt name would fix nothing."""
    assert set(Settings.__struct_fields__) >= FIXED


# -- what takes effect


async def test_limit(tmp_path: Path) -> None:
    """For the next message, also of who is connected already."""
    with open_reloadable(tmp_path, "message_bytes_max = 2000") as server:
        async with open_peer(server.daemon.port) as old:
            await said(old, 1500 * "x")
            entry = await server.reload("message_bytes_max = 1000")
            assert entry["changed"] == ["message_bytes_max"]
            assert entry["need_restart"] == []
            async with open_peer(server.daemon.port, "/chat/other") as new:
                for peer in (old, new):
                    await said(peer, 1000 * "y")
                    await peer.send(1001 * "z")
                    with pytest.raises(Closed) as closed:
                        await peer.receive()
                    assert closed.value.code == 1009
            assert (await server.reload(""))["changed"] == ["message_bytes_max"]  # what isn't there has its default
            async with open_peer(server.daemon.port) as peer:
                await said(peer, 60_000 * "x")


async def test_hosts_and_origins(tmp_path: Path) -> None:
    """For the next handshake; who is connected stays."""
    with open_reloadable(tmp_path, "") as server:
        port = server.daemon.port
        async with open_peer(port) as peer:
            assert await status_of(port, "chat.example") == 421
            assert await status_of(port, origin="https://www.example") == 403
            entry = await server.reload('allowed_hosts = ["chat.example"]\nallowed_origins = ["https://www.example"]')
            assert entry["changed"] == ["allowed_hosts", "allowed_origins"]
            assert await status_of(port) == 421
            assert await status_of(port, "chat.example") == 101
            assert await status_of(port, "chat.example", "https://www.example") == 101
            assert await status_of(port, "chat.example", "https://chat.example") == 403
            await said(peer, "still here")
            await server.reload("")
            assert await status_of(port, "chat.example") == 421
            assert await status_of(port, origin="http://localhost") == 101


async def test_log_level(tmp_path: Path) -> None:
    """An ordinary end is worth an entry at debug only."""

    async def come_and_go(room: str) -> None:
        ended = 'hubbub_connections_ended_total{reason="peer_closed"}'
        before = server.daemon.metrics()[ended]
        async with open_peer(server.daemon.port, f"/chat/{room}") as peer:
            await peer.close()
        with trio.fail_after(SECONDS_MAX):
            while server.daemon.metrics()[ended] == before:
                await trio.sleep(0.01)

    with open_reloadable(tmp_path, "") as server:
        await come_and_go("unseen")
        entry = await server.reload('log_level = "debug"')
        assert entry["changed"] == ["log_level"]
        await come_and_go("seen")
        entry = await logged(server.daemon, "connection ended")
        assert (entry["level"], entry["room"]) == ("debug", "seen")
        await server.reload('log_level = "info"')
        await come_and_go("unseen-again")
        server.daemon.process.send_signal(signal.SIGTERM)
        assert server.daemon.process.stderr is not None
        events = [json.loads(line)["event"] for line in server.daemon.process.stderr]
        assert events == ["draining", "stopped"]


async def test_what_needs_a_restart(tmp_path: Path) -> None:
    """It is named; all else takes effect, and the daemon stays where it is."""
    with open_reloadable(tmp_path, "") as server:
        entry = await server.reload('connections_max = 5\nmessage_bytes_max = 1000\nlog_format = "text"')
        assert entry["changed"] == ["message_bytes_max"]
        assert entry["need_restart"] == ["log_format", "connections_max"]
        assert await status_of(server.daemon.port) == 101
        # It is what it was started with that counts, not what the file said in between.
        for connections_max, need_restart in ((5, ["connections_max"]), (6, ["connections_max"]), (10_000, [])):
            entry = await server.reload(f"connections_max = {connections_max}\nmessage_bytes_max = 1000")
            assert (entry["changed"], entry["need_restart"]) == ([], need_restart)


async def test_namespaces(tmp_path: Path) -> None:
    """A change of any table is one of `namespaces`, also where it goes; not where it only follows the top level."""
    tables = "[namespaces.news]\nhistory_size = 5\n[namespaces.chat]\n"
    with open_reloadable(tmp_path, tables) as server:
        assert (await server.reload(tables))["changed"] == []
        for toml, changed in (
            (tables.replace("5", "6"), ["namespaces"]),
            ("history_size = 7\n[namespaces.news]\nhistory_size = 6", ["history_size", "namespaces"]),
            ("history_size = 8\n[namespaces.news]\nhistory_size = 6", ["history_size"]),
            ("history_size = 8\nhistory_bytes_max = 9000\n[namespaces.news]\nhistory_size = 6", ["history_bytes_max"]),
            ("history_size = 8\n[namespaces.news]\nhistory_size = 7", ["history_bytes_max", "namespaces"]),
            ("", ["history_size", "namespaces"]),
        ):
            entry = await server.reload(toml)
            assert (entry["changed"], entry["need_restart"]) == (changed, [])
        entry = await server.reload("[namespaces.news]\nhistory_size = -1", "reload failed; nothing is changed")
        assert entry["why"] == [
            f"{server.file}: namespaces.news.history_size: got -1, allowed: an integer from 0 to 1000000"
        ]


async def test_short_secrets(tmp_path: Path) -> None:
    """They are taken, and worth a warning that names the setting: at the start, and at a reload."""
    with open_reloadable(tmp_path, f'token_hmac_secret = "{31 * "x"}"\nhook_secret = "{32 * "y"}"') as server:
        entry = await logged(server.daemon, "short secret")
        assert (entry["level"], entry["setting"]) == ("warning", "token_hmac_secret")
        entry = await server.reload('hook_secret = "short"', "short secret")
        assert (entry["level"], entry["setting"]) == ("warning", "hook_secret")
        assert (await logged(server.daemon, "reloaded"))["changed"] == ["token_hmac_secret", "hook_secret"]


async def test_environment_and_flags_still_overrule_the_file(tmp_path: Path) -> None:
    """A file read again isn't stronger than it was."""
    with open_reloadable(tmp_path, "", "--log-level", "info", message_bytes_max=1000) as server:
        entry = await server.reload('log_level = "error"\nmessage_bytes_max = 2000\nport = 1\nhistory_size = 7')
        assert (entry["changed"], entry["need_restart"]) == (["history_size"], [])


async def test_without_a_file() -> None:
    """There is nothing new in the environment, so nothing changes."""
    with open_daemon() as daemon:
        async with open_peer(daemon.port) as peer:
            for _ in range(3):
                entry = await Reloadable(daemon, Path()).hang_up()
                assert (entry["changed"], entry["need_restart"], entry["certificate"]) == ([], [], False)
                await said(peer, "still here")


async def test_again_and_again(tmp_path: Path) -> None:
    """As fast as it goes, in the midst of the chat; the last file is what counts."""
    with open_reloadable(tmp_path, "") as server:
        async with open_peer(server.daemon.port) as peer:
            for number in range(200):
                server.file.write_text(f"message_bytes_max = {1000 + number}")
                server.daemon.process.send_signal(signal.SIGHUP)
                await said(peer, f"message {number}")
        server.file.write_text("message_bytes_max = 500")
        server.daemon.process.send_signal(signal.SIGHUP)
        with trio.fail_after(SECONDS_MAX):
            while await takes(server.daemon.port, 501):
                await trio.sleep(0.01)
        assert await takes(server.daemon.port, 500)


async def test_during_a_drain(tmp_path: Path) -> None:
    """It is neither an end nor a reason to stay."""
    with open_reloadable(tmp_path, "") as server:
        async with open_peer(server.daemon.port) as peer:
            server.daemon.process.send_signal(signal.SIGTERM)
            await logged(server.daemon, "draining")
            await server.reload("message_bytes_max = 1000")
            with pytest.raises(Closed) as closed:
                await peer.receive()
            assert closed.value.code == 1001
        assert (await logged(server.daemon, "stopped"))["cut_off"] == 0
        with trio.fail_after(SECONDS_MAX):
            assert await trio.to_thread.run_sync(server.daemon.process.wait, abandon_on_cancel=True) == 0


# -- what is wrong


BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "not TOML": ("message_bytes_max = 1000\nport = = 1", ["not TOML"]),
    "not UTF-8": (b"message_bytes_max = 1000\n# \xff", ["not UTF-8"]),
    "bad value": ("message_bytes_max = 1000\nping_seconds = -1", ["ping_seconds: got -1, allowed: "]),
    "bad type": ('message_bytes_max = 1000\nallowed_hosts = "x"', ['allowed_hosts: got "x", allowed: ']),
    "unknown key": ("message_bytes_max = 1000\nmesage_bytes_max = 1", ["did you mean message_bytes_max?"]),
    "all at once": (
        "message_bytes_max = 1000\nport = -1\nx = 1\ntrusted_proxies = ['10.0.0.0/99']\ntls_cert = 'a'",
        ["port: got -1", "x: unknown", "trusted_proxies: ", "without tls_key"],
    ),
}


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reloadable]:
    """One daemon that is told all the mistakes, and is none the worse for it."""
    with open_reloadable(tmp_path_factory.mktemp("patient"), "") as server:
        yield server


@pytest.mark.parametrize("name", BROKEN)
async def test_broken_file(name: str, patient: Reloadable) -> None:
    """Each mistake is logged, nothing changes, not even what is right, and the next good file is taken."""
    toml, mistakes = BROKEN[name]
    await patient.reload("")
    async with open_peer(patient.daemon.port) as peer:
        entry = await patient.reload(toml, "reload failed; nothing is changed")
        assert entry["level"] == "error"
        assert isinstance(entry["why"], list)
        assert len(entry["why"]) == len(mistakes)
        for mistake in mistakes:
            (line,) = [line for line in entry["why"] if mistake in line]
            assert line.startswith(f"{patient.file}: ")
        await said(peer, 2000 * "x")
        async with open_peer(patient.daemon.port) as another_peer:
            await said(another_peer, 2000 * "x")
        assert (await patient.reload("message_bytes_max = 1000"))["changed"] == ["message_bytes_max"]


async def test_file_that_is_gone(tmp_path: Path) -> None:
    """As an editor may leave it for a moment: no file isn't an empty one."""
    with open_reloadable(tmp_path, "message_bytes_max = 1000") as server:
        server.file.unlink()
        entry = await server.hang_up("reload failed; nothing is changed")
        assert entry["why"] == [f"{server.file}: cannot be read: No such file or directory"]
        async with open_peer(server.daemon.port) as peer:
            await peer.send(1001 * "x")
            with pytest.raises(Closed):
                await peer.receive()


# -- the certificate


class Certificate:
    """A server's certificate from an authority of its own, and a client that trusts that one only."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.leaf = authority.issue_cert("localhost")
        self.client = ssl.create_default_context()
        authority.configure_trust(self.client)

    def write(self, folder: Path) -> None:
        """Put it into the daemon's files."""
        (folder / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in self.leaf.cert_chain_pems))
        (folder / "key.pem").write_bytes(self.leaf.private_key_pem.bytes())


@pytest.fixture(scope="module")
def certificates() -> tuple[Certificate, Certificate]:
    """The old and the new one."""
    return Certificate(), Certificate()


@contextlib.contextmanager
def open_tls_reloadable(folder: Path, certificate: Certificate) -> Iterator[Reloadable]:
    """A daemon with a certificate."""
    certificate.write(folder)
    toml = f"tls_cert = '{folder / 'cert.pem'}'\ntls_key = '{folder / 'key.pem'}'"
    with open_reloadable(folder, toml) as server:
        yield server


@contextlib.asynccontextmanager
async def open_tls_peer(port: int, context: ssl.SSLContext) -> AsyncIterator[Peer]:
    """A client over TLS; on leaving the socket is closed, and nothing said."""
    stream = trio.SSLStream(await connect(port), context, server_hostname="localhost")
    try:
        yield await shake_hands(stream, handshake())
    finally:
        await trio.aclose_forcefully(stream)


async def is_trusted_by(certificate: Certificate, port: int) -> bool:
    """Whether a new connection finds this certificate."""
    try:
        async with open_tls_peer(port, certificate.client):
            return True
    except trio.BrokenResourceError:
        return False


async def test_new_certificate(tmp_path: Path, certificates: tuple[Certificate, Certificate]) -> None:
    """New connections find it; those that are open go on, also with each other."""
    old, new = certificates
    with open_tls_reloadable(tmp_path, old) as server:
        port = server.daemon.port
        async with open_tls_peer(port, old.client) as early:
            await said(early, "before")
            new.write(tmp_path)
            assert await is_trusted_by(old, port), "a new file alone is nothing"
            assert (await server.hang_up())["certificate"] is True
            assert not await is_trusted_by(old, port)
            async with open_tls_peer(port, new.client) as late:
                await early.send("from the early one")
                await late.send(20_000 * "x")
                for peer in (early, late):
                    assert set(await peer.receive_texts(2)) == {"from the early one", 20_000 * "x"}


BREAKS: dict[str, Callable[[Path, Certificate], object]] = {
    "not a certificate": lambda folder, _: (folder / "cert.pem").write_text("what?"),
    "no certificate": lambda folder, _: (folder / "cert.pem").unlink(),
    "no key": lambda folder, _: (folder / "key.pem").unlink(),
    "another key": lambda folder, new: (folder / "key.pem").write_bytes(new.leaf.private_key_pem.bytes()),
    "half a file": lambda folder, _: (folder / "cert.pem").write_bytes((folder / "cert.pem").read_bytes()[:300]),
    "empty file": lambda folder, _: (folder / "key.pem").write_bytes(b""),
}


@pytest.fixture(scope="module")
def tls_patient(
    tmp_path_factory: pytest.TempPathFactory, certificates: tuple[Certificate, Certificate]
) -> Iterator[Reloadable]:
    """The same over TLS."""
    with open_tls_reloadable(tmp_path_factory.mktemp("patient"), certificates[0]) as server:
        yield server


@pytest.mark.parametrize("name", BREAKS)
async def test_broken_certificate(
    name: str, tls_patient: Reloadable, certificates: tuple[Certificate, Certificate]
) -> None:
    """The old one stays in use, and nothing else changes either."""
    old, new = certificates
    server, folder = tls_patient, tls_patient.file.parent
    good = server.file.read_text().partition("\nmessage_bytes_max")[0]
    old.write(folder)
    await server.reload(good)
    assert await is_trusted_by(old, server.daemon.port)
    BREAKS[name](folder, new)
    entry = await server.reload(f"{good}\nmessage_bytes_max = 1000", "reload failed; nothing is changed")
    assert isinstance(entry["why"], list)
    assert len(entry["why"]) == 1
    assert ("key.pem" if name in ("no key", "another key", "empty file") else "cert.pem") in entry["why"][0]
    async with open_tls_peer(server.daemon.port, old.client) as peer:
        await said(peer, 2000 * "x")
    new.write(folder)
    assert (await server.hang_up())["changed"] == ["message_bytes_max"]
    assert await is_trusted_by(new, server.daemon.port)


async def test_another_certificate_file_needs_a_restart(
    tmp_path: Path, certificates: tuple[Certificate, Certificate]
) -> None:
    """Only the files' contents are read again, not where they are."""
    old, _ = certificates
    with open_tls_reloadable(tmp_path, old) as server:
        entry = await server.reload("")
        assert entry["need_restart"] == ["tls_cert", "tls_key"]
        assert await is_trusted_by(old, server.daemon.port)


# -- settings that belong together


PROXY_HEADER = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes((10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 80))


async def test_both_halves_of_a_pair_or_neither(tmp_path: Path) -> None:
    """A good file never makes settings together that no file could."""

    async def is_served(header: bytes) -> bool:
        stream = await connect(server.daemon.port)
        try:
            await shake_hands(stream, header + handshake())
        except (HandshakeRefused, trio.BrokenResourceError):
            return False
        finally:
            await trio.aclose_forcefully(stream)
        return True

    with open_reloadable(tmp_path, 'proxy_protocol = true\ntrusted_proxies = ["127.0.0.1"]') as server:
        assert await is_served(PROXY_HEADER)
        entry = await server.reload("")
        assert isinstance(entry["changed"], list)
        assert ("proxy_protocol" in entry["changed"]) == ("trusted_proxies" in entry["changed"])
        assert await is_served(b"" if "proxy_protocol" in entry["changed"] else PROXY_HEADER)


# -- a change under way


async def stalled_peer(world: World) -> Peer:
    """A client of the pipe that reads nothing from now on."""
    peer = await world.open_peer()
    peer.stream.stall()  # type: ignore[attr-defined]
    return peer


@pytest.mark.parametrize(("before", "after"), [(50, 500), (500, 50)])
async def test_frames_limit_changes_while_frames_wait(
    before: int, after: int, autojump_clock: trio.testing.MockClock
) -> None:
    """What waits is bounded by the old limit or by the new one; beyond it there is one slow consumer, and no error."""
    with capture_logs() as logs:
        async with open_world("pipe", outbox_frames_max=before, write_stall_seconds_max=600) as world:
            slow, quick = await stalled_peer(world), await world.open_peer()
            for number in range(30):
                await said(quick, f"before {number} " + 500 * "x")
            running = world.node.settings
            change(running, running, msgspec.structs.replace(running, outbox_frames_max=after))
            for number in range(600):
                await said(quick, f"after {number} " + 500 * "x")
            slow.stream.resume()  # type: ignore[attr-defined]
            _, closed = await slow.receive_until_closed()
            assert closed.code == 1013
            await said(quick, "still here")
            assert world.node.hub.statistics().rooms_failed == 0
    assert [entry for entry in logs if entry["log_level"] in ("error", "critical")] == []
