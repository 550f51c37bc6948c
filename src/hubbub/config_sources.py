"""Where settings come from: defaults < TOML file < `HUBBUB_<NAME>` environment < command-line flags.

Rules:

- Later sources win, but every value of every source is looked at, also one that a later source replaces, and all
  mistakes are reported at once, one line each.
- A key that nobody knows is a mistake: a misspelt limit is no limit.
- Namespaces are tables of the file. What a table doesn't say is as at the top level, whichever source says it there.
"""

import difflib
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from hubbub.auth.api_keys import duplicate_name
from hubbub.auth.proxies import parse_networks
from hubbub.config import Settings
from hubbub.config_types import Namespace, NamespaceName


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
    secret: bool  # whether its value must not be shown


def _option(field: inspect.Field) -> Option:
    assert isinstance(field.type, inspect.Metadata), f"{field.name} needs a description"
    extra = field.type.extra or {}
    match field.type.type:
        case inspect.IntType(ge=low, le=high):
            allowed = f"an integer from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            allowed = f"a number from {low:.10g} to {high:.10g}"
        case inspect.LiteralType(values=values):
            allowed = "one of " + ", ".join(f'"{value}"' for value in values)
        case _:
            allowed = extra["allowed"]
    description = (field.type.extra_json_schema or {})["description"]
    default = getattr(Settings(), field.name)
    return Option(default, description, allowed, extra.get("group"), extra.get("secret", False))


def _options() -> dict[str, Option]:
    declared = inspect.type_info(Settings)
    assert isinstance(declared, inspect.StructType)
    # Inheritance puts a namespace's fields first; a reader wants to know of the server before its rooms.
    fields = sorted(declared.fields, key=lambda field: field.name in Namespace.__struct_fields__)
    return {field.name: _option(field) for field in fields}


OPTIONS = _options()
_WITHOUT_TABLES = [name for name in OPTIONS if name != "namespaces"]
_Chosen = dict[str, tuple[str, Any]]  # name -> who says so, value


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
    names: Collection[str]  # the settings that it may give
    elsewhere: str = ""  # where all others may be given


def load(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """The settings that the sources give together.

    `path` is a TOML file, `environ` the process's environment (other programs' variables are ignored), and
    `flags` holds, by the name of the setting, only the flags that the user gave, as text.

    Raises `ConfigError`.
    """
    problems: list[str] = []
    chosen: _Chosen = {}
    toml = _read_toml(path, problems) if path else {}
    variables = {name: value for name, value in environ.items() if name.startswith("HUBBUB_")}
    flagged = {flag(name): value for name, value in flags.items()}
    for source in (
        _Source(f"{path}: ", str, toml, strict=True, names=OPTIONS),
        _Source("", variable, variables, strict=False, names=_WITHOUT_TABLES, elsewhere="in the TOML file"),
        _Source("", flag, flagged, strict=False, names=_WITHOUT_TABLES, elsewhere="in the TOML file"),
    ):
        _take(source, chosen, problems)
    where, tables = chosen.pop("namespaces", ("", {}))
    _check_pair("tls_cert", "tls_key", chosen, problems)
    _check_pair("tls_key", "tls_cert", chosen, problems)
    _check_proxies(chosen, problems)
    _check_port("metrics_address", chosen, problems)
    _check_port("api_address", chosen, problems)
    _check_api_keys(chosen, problems)
    _check_joins(chosen, {}, problems)
    namespaces = _take_tables(where, tables, chosen, problems)
    if problems:
        raise ConfigError(problems)
    return Settings(**_values(chosen), namespaces=namespaces)


def _values(chosen: _Chosen) -> dict[str, Any]:
    return {name: value for name, (_, value) in chosen.items()}


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


def _take(source: _Source, chosen: _Chosen, problems: list[str]) -> None:
    names = {source.spell(name): name for name in OPTIONS}
    for spelled, value in source.given.items():
        where = source.prefix + _show_key(spelled)
        if spelled not in names:
            problems.append(f"{where}: unknown{_suggest(spelled, source)}")
            continue
        name = names[spelled]
        shown = "what isn't shown" if OPTIONS[name].secret else _show(value)
        if name not in source.names:
            problems.append(f"{where}: got {shown}, allowed: only {source.elsewhere}")
            continue
        # A mistaken value counts as given, or the other half of a pair would be called missing.
        chosen[name] = (where, value)
        try:
            chosen[name] = (where, _convert(name, value, source.strict))
        except (msgspec.ValidationError, UnicodeError):  # the latter: the environment may hold any bytes
            problems.append(f"{where}: got {shown}, allowed: {OPTIONS[name].allowed}")


def _take_tables(where: str, tables: object, outer: _Chosen, problems: list[str]) -> dict[str, Namespace]:
    """The namespaces in `tables`, which stand at `where`; `outer` is what is chosen at the top level."""
    found: dict[str, Namespace] = {}
    fields = Namespace.__struct_fields__
    outer = {name: outer[name] for name in fields if name in outer}
    for name, table in tables.items() if isinstance(tables, dict) else ():
        _check_name(where, name, problems)
        here = f"{where}.{_show_key(name)}"
        if not isinstance(table, dict):
            problems.append(f"{here}: got {_show(table)}, allowed: a table [namespaces.NAME]")
            continue
        inner: _Chosen = {}
        elsewhere = "at the top level, above all tables"
        _take(_Source(f"{here}.", str, table, strict=True, names=fields, elsewhere=elsewhere), inner, problems)
        _check_joins(inner, outer, problems)
        found[name] = Namespace(**_values(outer | inner))
    return found


def _check_name(where: str, name: str, problems: list[str]) -> None:
    try:
        msgspec.convert(name, NamespaceName)
    except msgspec.ValidationError:
        declared = inspect.type_info(NamespaceName)
        assert isinstance(declared, inspect.Metadata)
        problems.append(f"{where}: got {_show(name)}, allowed: {(declared.extra or {})['allowed']}")


def _check_pair(name: str, other: str, chosen: _Chosen, problems: list[str]) -> None:
    where, value = chosen.get(name, ("", ""))
    if value and not chosen.get(other, ("", ""))[1]:
        problems.append(f"{where}: got {_show(value)} without {other}, allowed: both or neither")


def _check_proxies(chosen: _Chosen, problems: list[str]) -> None:
    where, networks = chosen.get("trusted_proxies", ("", []))
    try:
        parse_networks(networks)
    except (ValueError, TypeError) as error:
        if not any(problem.startswith(f"{where}: got") for problem in problems):
            problems.append(f"{where}: {error}")
    where, value = chosen.get("proxy_protocol", ("", False))
    if value is True and not networks:
        problems.append(f"{where}: got true without trusted_proxies, allowed: both or neither")


def _check_port(name: str, chosen: _Chosen, problems: list[str]) -> None:
    where, address = chosen.get(name, ("", ""))
    port = address.rpartition(":")[2] if isinstance(address, str) else ""
    if port.isdecimal() and int(port) > 65_535:
        problems.append(f"{where}: got {_show(address)}, allowed: a port from 0 to 65535")


def _check_api_keys(chosen: _Chosen, problems: list[str]) -> None:
    where, keys = chosen.get("api_keys", ("", []))
    if any(problem.startswith(f"{where}: got") for problem in problems):
        return  # what isn't NAME:SCOPE:KEY could be a key from its first character on
    name = duplicate_name(keys)
    if name is not None:
        problems.append(f"{where}: got {_show(name)} twice, allowed: each NAME once")


def _check_joins(inner: _Chosen, outer: _Chosen, problems: list[str]) -> None:
    """`inner` is what one table or the top level says, `outer` what holds where it is silent."""
    both = _values(outer | inner)
    if both.get("force_join_leave") is not True or both.get("join_leave", False) is not False:
        return
    # Where it says neither, the mistake is the outer one's.
    for name, got in (("force_join_leave", "true without join_leave"), ("join_leave", "false with force_join_leave")):
        if name in inner:
            problems.append(f"{inner[name][0]}: got {got}, allowed: both, or join_leave alone")
            return


def _convert(name: str, value: object, strict: bool) -> object:
    """`value` as the type of the field `name`; raises msgspec.ValidationError or UnicodeError."""
    if name == "namespaces":
        return msgspec.convert(value, dict[str, Any])  # `_take_tables` looks into them
    if not strict and isinstance(value, str) and isinstance(OPTIONS[name].default, list):
        value = [item.strip() for item in value.split(",")] if value.strip() else []
    return getattr(msgspec.convert({name: value}, Settings, strict=strict), name)


def _suggest(spelled: str, source: _Source) -> str:
    """The closest known key, if one is close, in the spelling of the source."""
    # Compared without what all spellings of a source share, which would make all of them look close.
    plain = spelled.removeprefix("HUBBUB_").removeprefix("--").replace("-", "_").lower()
    closest = difflib.get_close_matches(plain, source.names, n=1)
    return f", did you mean {source.spell(closest[0])}?" if closest else ""


def _show_key(spelled: str) -> str:
    """A key as it may stand in a TOML file."""
    return spelled if re.fullmatch(r"[\w-]+", spelled, re.ASCII) else _show(spelled)


def _show(value: object) -> str:
    """`value` on one short line of ASCII, whatever it holds."""
    try:
        shown = json.dumps(value, default=str)
    except ValueError:  # an integer beyond Python's limit of digits
        return "a number too long to show"
    except RecursionError:  # dotted keys nest as deep as they like
        return "tables too deep to show"
    return shown if len(shown) <= 80 else shown[:77] + "..."


_HEADING = """\
# The settings of hubbub, each with its default. Delete what you do not change.
# The environment overrules this file (HUBBUB_PORT for port; lists with commas: HUBBUB_ALLOWED_HOSTS=a,b),
# and the flags of the command line overrule both (--port).
"""

# Tables come last, as TOML gives them every key that follows.
_EXAMPLE = """\
# For example, for news:today, news:sports and all other rooms that begin with "news:":

# [namespaces.news]
# history_size = 1000
# history_seconds_max = 86400.0
# join_leave = true
"""


def default_toml() -> str:
    """A TOML file that sets every key to its default, with comments; `load` makes `Settings()` of it."""
    lines = [_HEADING]
    for name in _WITHOUT_TABLES:
        option = OPTIONS[name]
        if option.group:
            lines.append(f"\n# === {option.group} ===\n")
        lines += [*_comment(option), f"{name} = {json.dumps(option.default)}\n"]
    return "\n".join([*lines, "\n# === Rooms with a namespace ===\n", *_comment(OPTIONS["namespaces"]), _EXAMPLE])


def _comment(option: Option) -> list[str]:
    described = textwrap.wrap(option.description, 100, initial_indent="# ", subsequent_indent="# ")
    return [*described, f"# Allowed: {option.allowed}."]
