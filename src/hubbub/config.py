"""Every setting of a hubbub server: its meaning, its bounds, its default, and where its value comes from.

Rules:

- `Settings` is the one place where a setting is declared. The commented TOML of `hubbub config default`, the
  help of the command line and the lines that report a mistake are all made from its metadata.
- A limit has its unit in its name (`_seconds`, `_bytes`, `_frames`, …) and is never absent: there is no
  "unlimited". Its comment says where the number comes from.
- Later sources win: defaults < TOML file < `HUBBUB_<NAME>` environment < command-line flags.
- `load` looks at every value of every source, also at one that a later source replaces, and reports all
  mistakes at once, one line each. A key that nobody knows is a mistake: a misspelt limit is no limit.
- Only `load` checks; a `Settings` made by hand, as tests do, is taken as it is.
"""

import difflib
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, inspect

LogFormat = Literal["auto", "text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

Count = Annotated[int, Meta(ge=1, le=10_000_000)]
Bytes = Annotated[int, Meta(ge=256, le=2**30)]
Seconds = Annotated[float, Meta(ge=0.001, le=86_400.0)]
# The patterns keep out what would end in a ValueError of the operating system's calls, such as a NUL.
Host = Annotated[str, Meta(pattern=r"(?a)\A[\w.:%-]+\Z", extra={"allowed": "a host name or an IP address"})]
File = Annotated[str, Meta(pattern=r"\A[^\0]*\Z", extra={"allowed": "the path of a file, or nothing"})]
Name = Annotated[str, Meta(min_length=1)]
Names = Annotated[list[Name], Meta(extra={"allowed": "a list of strings, none of them empty"})]

# A field whose metadata names a group is the first of that group.
_SERVER = {"group": "Server"}
_FRONT_DOOR = {"group": "Front door: what a client may do before it speaks"}
_MESSAGES = {"group": "Messages: what a client may send"}
_OUTBOX = {"group": "Outbox: what waits to be written to one client"}
_HUB = {"group": "Hub: the one place where everything gets its order"}
_ROOMS = {"group": "Rooms and their history"}
_HEARTBEAT = {"group": "Heartbeat"}
_ENDING = {"group": "Ending: of a connection, and of the server"}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one server runs with. A description is the comment that its field gets in the TOML file."""

    host: Annotated[Host, Meta(description="Address to listen on.", extra=_SERVER)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535, description="TCP port; 0 takes a free one.")] = 8000
    tls_cert: Annotated[File, Meta(description="PEM file of the certificate chain; empty for no TLS.")] = ""
    tls_key: Annotated[File, Meta(description="PEM file of the certificate's private key.")] = ""
    allowed_hosts: Annotated[
        Names,
        Meta(description='Host names answered to; empty: loopback names and the bound address; "*": any.'),
    ] = []
    allowed_origins: Annotated[
        Names,
        Meta(
            description='Origins of web pages that may connect, such as "https://*.example.com"; empty: the '
            'host they connect to; "*": any. A client that names no origin is no browser and may connect.'
        ),
    ] = []
    log_format: Annotated[
        LogFormat, Meta(description="Form of the log on stderr; auto: text on a terminal, else json.")
    ] = "auto"
    log_level: Annotated[LogLevel, Meta(description="Least severe log level that is written.")] = "info"

    connections_max: Annotated[
        Count, Meta(description="Connections served at once: the classic C10K.", extra=_FRONT_DOOR)
    ] = 10_000
    connections_spare: Annotated[
        Count, Meta(description="Connections above that, only to answer /health, /metrics and 503.")
    ] = 64
    head_bytes_max: Annotated[
        Bytes, Meta(description="Request line and headers; nginx and Node.js allow 8 to 16 KiB.")
    ] = 16_384
    head_seconds_max: Annotated[
        Seconds, Meta(description="TLS handshake and request head together; ample for a slow mobile link.")
    ] = 10.0
    keepalive_seconds_max: Annotated[
        Seconds, Meta(description="An idle connection's wait for the next request; nginx's default.")
    ] = 75.0
    body_bytes_max: Annotated[
        Bytes, Meta(description="Request body: as much as message_bytes_max, which it carries.")
    ] = 65_536

    message_bytes_max: Annotated[Bytes, Meta(description="One message; Centrifugo's default.", extra=_MESSAGES)] = (
        65_536
    )
    message_fragments_max: Annotated[
        Count, Meta(description="WebSocket frames of one message: the largest one, in pieces of 1 KiB.")
    ] = 64

    outbox_bytes_max: Annotated[Bytes, Meta(description="Bytes waiting; Centrifugo's client queue.", extra=_OUTBOX)] = (
        1_048_576
    )
    outbox_frames_max: Annotated[Count, Meta(description="Frames waiting: outbox_bytes_max in frames of 64 bytes.")] = (
        16_384
    )
    write_stall_seconds_max: Annotated[
        Seconds, Meta(description="A write's wait for the client to read; as patient as head_seconds_max.")
    ] = 10.0

    inbox_commands_max: Annotated[
        Count, Meta(description="Commands waiting for the hub: 4 KiB each fill inbox_bytes_max.", extra=_HUB)
    ] = 4_096
    inbox_bytes_max: Annotated[
        Bytes, Meta(description="Bytes waiting for the hub: 256 messages of the largest size.")
    ] = 16_777_216
    pass_commands_max: Annotated[
        Count, Meta(description="Commands handled before others may run: a quarter of a full inbox.")
    ] = 1_024
    gather_passes_max: Annotated[
        int,
        Meta(
            ge=0,
            le=16,
            description="Scheduler passes the hub waits for more commands before it handles a batch; few, as "
            "each adds delay.",
        ),
    ] = 2

    rooms_max: Annotated[
        Count, Meta(description="Rooms at once: ten for each connection of connections_max.", extra=_ROOMS)
    ] = 100_000
    history_size: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Publications kept in a room, a few screens; 0: none.")
    ] = 100
    history_bytes_max: Annotated[Bytes, Meta(description="Bytes kept in a room: what one outbox can take at once.")] = (
        1_048_576
    )
    history_seconds_max: Annotated[
        Seconds, Meta(description="Age of what is kept: a client back after five minutes misses nothing.")
    ] = 300.0

    ping_seconds: Annotated[
        Seconds,
        Meta(description="Time between pings; below proxies' idle time-outs, 30 to 60 s.", extra=_HEARTBEAT),
    ] = 25.0
    pong_seconds_max: Annotated[
        Seconds, Meta(description="Wait for the answer to a ping; as patient as write_stall_seconds_max.")
    ] = 10.0

    close_seconds_max: Annotated[
        Seconds, Meta(description="Wait for a client's half of the closing handshake.", extra=_ENDING)
    ] = 5.0
    linger_seconds_max: Annotated[
        Seconds, Meta(description="Reading on after a refusal, lest a TCP reset destroy the answer.")
    ] = 1.0
    linger_bytes_max: Annotated[
        Bytes, Meta(description="Bytes read on after a refusal: sixteen of the largest bodies.")
    ] = 1_048_576
    drain_seconds_max: Annotated[
        Seconds, Meta(description="From SIGTERM to the end; below the 30 s grace period of Kubernetes.")
    ] = 20.0


class ConfigError(Exception):
    """The sources hold mistakes."""

    def __init__(self, problems: list[str]) -> None:
        """`problems`: one line a mistake, of the form `source: key: got …, allowed: …`."""
        super().__init__("\n".join(problems))
        self.problems = problems


class Option(NamedTuple):
    """What a field of `Settings` tells about itself."""

    default: object
    description: str
    allowed: str  # completes "allowed: …"
    group: str | None  # the title of the group that begins with this field


def _option(field: inspect.Field) -> Option:
    assert isinstance(field.type, inspect.Metadata), f"{field.name} needs a description"
    extra = field.type.extra or {}
    match field.type.type:
        case inspect.IntType(ge=low, le=high):
            allowed = f"an integer from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            allowed = f"a number from {low:g} to {high:g}"
        case inspect.LiteralType(values=values):
            allowed = "one of " + ", ".join(f'"{value}"' for value in values)
        case _:
            allowed = extra["allowed"]
    description = (field.type.extra_json_schema or {})["description"]
    return Option(getattr(Settings(), field.name), description, allowed, extra.get("group"))


def _options() -> dict[str, Option]:
    declared = inspect.type_info(Settings)
    assert isinstance(declared, inspect.StructType)
    return {field.name: _option(field) for field in declared.fields}


OPTIONS = _options()


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"HUBBUB_{name.upper()}"


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


class _Source(NamedTuple):
    prefix: str  # what a problem's line begins with, before the key
    spell: Callable[[str], str]  # how this source spells the name of a setting
    given: Mapping[str, object]  # by the source's own spelling
    strict: bool  # False where everything is text: "8000" is then a number, "a,b" a list


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """The settings that the sources give together.

    `path` is a TOML file, `environ` the process's environment (other programs' variables are ignored), and
    `flags` holds, by the name of the setting, only the flags that the user gave, as text.

    Raises `ConfigError`.
    """
    problems: list[str] = []
    chosen: dict[str, tuple[str, Any]] = {}  # name -> who says so, value
    for source in (
        _Source(f"{path}: ", str, _read_toml(path, problems) if path else {}, strict=True),
        _Source("", variable, {k: v for k, v in environ.items() if k.startswith("HUBBUB_")}, strict=False),
        _Source("", flag, {flag(name): value for name, value in flags.items()}, strict=False),
    ):
        _take(source, chosen, problems)
    _check_pair("tls_cert", "tls_key", chosen, problems)
    _check_pair("tls_key", "tls_cert", chosen, problems)
    if problems:
        raise ConfigError(problems)
    return Settings(**{name: value for name, (_, value) in chosen.items()})


def _read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    content = b""
    try:
        content = path.read_bytes()
        return tomllib.loads(content.decode())
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.append(f"{path}: not UTF-8 (at line {line})")
    except (ValueError, RecursionError) as error:  # besides TOML errors: too many digits, too deep a nesting
        problems.append(f"{path}: not TOML: {error}")
    return {}


def _take(source: _Source, chosen: dict[str, tuple[str, Any]], problems: list[str]) -> None:
    names = {source.spell(name): name for name in OPTIONS}
    for spelled, value in source.given.items():
        where = source.prefix + (spelled if re.fullmatch(r"[\w-]+", spelled, re.ASCII) else _show(spelled))
        if spelled not in names:
            problems.append(f"{where}: unknown{_suggest(spelled, source.spell)}")
            continue
        name = names[spelled]
        # A mistaken value counts as given, or the other half of a pair would be called missing.
        chosen[name] = (where, value)
        try:
            chosen[name] = (where, _convert(name, value, source.strict))
        except (msgspec.ValidationError, UnicodeError):  # the latter: the environment may hold any bytes
            problems.append(f"{where}: got {_show(value)}, allowed: {OPTIONS[name].allowed}")


def _check_pair(name: str, other: str, chosen: dict[str, tuple[str, Any]], problems: list[str]) -> None:
    where, value = chosen.get(name, ("", ""))
    if value and not chosen.get(other, ("", ""))[1]:
        problems.append(f"{where}: got {_show(value)} without {other}, allowed: both or neither")


def _convert(name: str, value: object, strict: bool) -> object:
    """`value` as the type of the field `name`; raises msgspec.ValidationError or UnicodeError."""
    if not strict and isinstance(value, str) and isinstance(OPTIONS[name].default, list):
        value = [item.strip() for item in value.split(",")] if value.strip() else []
    return getattr(msgspec.convert({name: value}, Settings, strict=strict), name)


def _suggest(spelled: str, spell: Callable[[str], str]) -> str:
    """The closest known key, if one is close, in the spelling of the source."""
    # Compared without what all spellings of a source share, which would make all of them look close.
    plain = spelled.removeprefix("HUBBUB_").removeprefix("--").replace("-", "_").lower()
    closest = difflib.get_close_matches(plain, OPTIONS, n=1)
    return f", did you mean {spell(closest[0])}?" if closest else ""


def _show(value: object) -> str:
    """`value` on one short line of ASCII, whatever it holds."""
    try:
        shown = json.dumps(value, default=str)
    except ValueError:  # an integer beyond Python's limit of digits
        return "a number too long to show"
    return shown if len(shown) <= 80 else shown[:77] + "..."


_HEADING = """\
# The settings of hubbub, each with its default. Delete what you do not change.
# The environment overrules this file (HUBBUB_PORT for port; lists with commas: HUBBUB_ALLOWED_HOSTS=a,b),
# and the flags of the command line overrule both (--port).
"""


def default_toml() -> str:
    """A TOML file that sets every key to its default, with comments; `load` makes `Settings()` of it."""
    lines = [_HEADING]
    for name, option in OPTIONS.items():
        if option.group:
            lines.append(f"\n# === {option.group} ===\n")
        lines += textwrap.wrap(option.description, 100, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"# Allowed: {option.allowed}.")
        lines.append(f"{name} = {json.dumps(option.default)}\n")
    return "\n".join(lines)
