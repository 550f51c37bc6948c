"""What the design promises of the source itself: who imports whom, who waits for whom, and how large things get."""

import ast
from collections.abc import Iterator
from pathlib import Path

import hubbub

SOURCE = Path(hubbub.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

LAYERS = [
    {"errors"},
    {"config_types"},
    {"config"},
    {"collector", "model", "systemd"},
    {"core"},
    {"auth"},
    {"dialects", "engines"},
    {"hub"},
    {"hooks"},
    {"connection"},
    {"web", "listen", "log"},
    {"config_change", "config_sources", "node"},
    {"daemon", "cli_publish", "cli_token"},
    {"cli"},
    {"__main__"},
]
"""Imports point to an earlier line, or stay within their own name; those on one line don't know each other."""

PURE = ("model", "core", "dialects")
"""These never import Trio."""

WAITS = {
    # The hub waits for its inbox, and lets others run. Nothing else: no send, no lock, no reply.
    "hub.task.run_hub": {"_apply", "checkpoint", "take"},
    "hub.task._apply": {"_hand_out", "_hand_out_all", "checkpoint"},
    "hub.task._hand_out_all": {"_hand_out", "checkpoint"},
    "hub.task._hand_out": {"checkpoint"},
    # Readers wait for room in the inbox; the hub for something in it.
    "hub.inbox.Inbox.put": {"_park", "send"},
    "hub.inbox.Inbox._park": {"park"},
    "hub.inbox.Inbox.take": {"receive"},
    # The reader: for the peer, for the 101, and for the session, which waits for the inbox.
    "connection.session.Session.receive": {"_answer_of", "_permitted", "_put_question", "_wait", "put"},
    "connection.session.Session._answer_of": {"put", "wait"},
    "connection.session.Session.receive_run": {"_wait", "put_run", "receive"},
    "hub.inbox.Inbox.put_run": {"put"},
    # The back end, where it is to be asked: a hook's time at most.
    "connection.session.Session._permitted": {"_ask"},
    # For the last large answer: the hub's, which waits for nobody, and the writer's, which has a deadline. Then for
    # a turn: whoever has one waits for the hub only.
    "connection.session.Session._put_question": {"acquire", "flushed", "put", "wait"},
    "connection.session.Session.receive_fragment": {"_wait"},
    "connection.session.Session._wait": {"sleep"},  # as long as it is over its rates
    "connection.wire.Wire.receive_some": {
        "_divide",
        "_tire_of",
        "checkpoint",
        "pass_through",
        "receive_some",
        "wait",
    },
    "connection.wire.Wire._divide": {"_note_passing", "checkpoint", "receive", "receive_run"},
    "connection.wire.Wire._note_passing": {"pass_through", "receive_fragment"},
    "connection.wire.Wire._tire_of": {"sleep_forever"},  # until the close deadline
    "connection.wire.Wire.send_all": {"checkpoint", "flushed"},
    "connection.wire.Wire.wait_send_all_might_not_block": {"checkpoint"},
    "connection.wire.Wire.aclose": {"checkpoint"},
    # What is read for a task that waits: for the peer.
    "connection.poller.Inlet.receive_some": {"checkpoint", "wait"},
    "connection.poller.Poller.run": {"_until_ready"},
    # The writer: for the transport.
    "connection.outbox.Outbox._run_writer": {"_write"},
    "connection.outbox.Outbox._write": {"send_some"},
    "connection.outbox.Outbox.flushed": {"wait"},
    # The body: for the hub's answer before the 101, then for messages, the end, the goodbye; each with a deadline.
    "connection.connection.serve_connection": {"linger", "open", "part", "serve"},
    "connection.connection.Connection.open": {"_join", "_shake_hands"},
    "connection.connection.Connection.serve": {"_take_next", "wait"},
    "connection.connection.Connection.part": {"_say_goodbye", "_take_the_rest", "flushed", "pass_through"},
    "connection.connection.Connection._join": {"ask", "put", "wait"},
    "connection.connection.Connection._shake_hands": {"accept", "wrap_server_stream"},
    "connection.connection.Connection._take_next": {"_take", "get_message"},
    "connection.connection.Connection._take_the_rest": {"_take", "get_message"},
    "connection.connection.Connection._take": {"receive"},
    "connection.connection.Connection._say_goodbye": {"_answered", "aclose", "flushed"},
    "connection.connection._answered": {"get_message"},
    "connection.linger.linger": {"receive_some", "shutdown_send", "sleep"},
    "connection.proxy_header.receive_proxy_header": {"wait_readable"},
    # Those who come or go at one moment: for their turn.
    "connection.turnstile.Turnstile.pass_through": {"park"},
    "connection.turnstile.Turnstile.keep": {"checkpoint", "park"},
    # Housekeeping: for the clock.
    "connection.heartbeat.run_heartbeat": {"checkpoint", "sleep"},
}
"""Every `await` of the hub and of connections (transports apart, which wait for their peer): who waits for what."""


def module_of(file: Path) -> str:
    """Return the name below `hubbub`."""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(file: Path) -> Iterator[str]:
    """Return the modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def functions_of(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Return each function with its qualified name below `hubbub`; functions within functions belong to those."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}.{node.name}")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}.{node.name}", node

    yield from walk(ast.parse(file.read_text()).body, module_of(file))


def test_imports_point_down_only() -> None:
    """The layers hold."""
    rank = {name: index for index, names in enumerate(LAYERS) for name in names}
    for file in FILES:
        own = module_of(file).split(".")[0]
        if own in ("", "mini"):
            continue
        for imported in imports_of(file):
            if imported.startswith("hubbub."):
                other = imported.split(".")[1]
                assert other == own or rank[other] < rank[own], f"{file.name} imports {imported}"


def test_the_core_does_not_know_trio() -> None:
    """Pure means pure."""
    for file in FILES:
        if module_of(file).split(".")[0] in PURE:
            assert not {"trio", "trio_websocket", "time", "random"} & set(imports_of(file)), file


def test_who_waits_for_whom() -> None:
    """Every await of the core is in the table, and the table has no others."""
    found: dict[str, set[str]] = {}
    for file in FILES:
        module = module_of(file)
        if module.split(".")[0] not in ("hub", "connection") or module == "connection.transport":
            continue
        for name, function in functions_of(file):
            for node in ast.walk(function):
                if isinstance(node, ast.Await):
                    assert isinstance(node.value, ast.Call), (name, "awaits something that isn't a call")
                    called = node.value.func
                    found.setdefault(name, set()).add(called.attr if isinstance(called, ast.Attribute) else called.id)  # type: ignore[attr-defined]
    assert found == WAITS


def test_tasks_are_started_in_few_places() -> None:
    """No task is started outside a nursery opened in the same function, but for the outbox's writer."""
    allowed = {"connection.outbox.Outbox.go_on"}  # in its connection's nursery, which outlives the backlog
    for file in FILES:
        for name, function in functions_of(file):
            attributes = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
            assert "start_soon" not in attributes or "open_nursery" in attributes or name in allowed, name


def test_sizes() -> None:
    """Files stay on a few screens, functions on one."""
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 400, file
        for name, function in functions_of(file):
            assert function.end_lineno is not None
            assert function.end_lineno - function.lineno <= 65, name


def test_words() -> None:
    """A few words of the glossary that are easily mistaken."""
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Name | ast.arg):
                name = node.id if isinstance(node, ast.Name) else node.arg
                wire_word = name == "channel" and {"centrifugo", "api"} & set(file.parts)  # Centrifugo's for a room
                assert wire_word or name not in ("channel", "topic", "coroutine"), f"{file}: {name}"
