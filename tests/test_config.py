"""`hubbub.config`: each mistake has its line, later sources win, and no input has another outcome."""

import datetime
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubbub.config import Settings
from hubbub.config_sources import OPTIONS, ConfigError, default_toml, load, variable
from hubbub.config_types import Namespace

ALLOWED_FORMATS = 'one of "auto", "json", "text"'
ALLOWED_NAMES = "a name of up to 64 ASCII letters, digits, _ . -"
LONG = "x" * 100


def problems(path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> list[str]:
    """The mistakes that `load` finds; there must be some."""
    with pytest.raises(ConfigError) as caught:
        load(path, environ, flags)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, not yet written, that is called by its name alone."""
    monkeypatch.chdir(tmp_path)
    return Path("hubbub.toml")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ('port = "abc"', 'port: got "abc", allowed: an integer from 0 to 65535'),
        ('port = "8000"', 'port: got "8000", allowed: an integer from 0 to 65535'),
        ("port = -1", "port: got -1, allowed: an integer from 0 to 65535"),
        ("port = 65536", "port: got 65536, allowed: an integer from 0 to 65535"),
        ("port = 80.0", "port: got 80.0, allowed: an integer from 0 to 65535"),
        ("port = true", "port: got true, allowed: an integer from 0 to 65535"),
        ("port = 1979-05-27", 'port: got "1979-05-27", allowed: an integer from 0 to 65535'),
        ("port = {a = [1]}", 'port: got {"a": [1]}, allowed: an integer from 0 to 65535'),
        (
            f"port = 0x{'f' * 5000}",
            "port: got a number too long to show, allowed: an integer from 0 to 65535",
        ),
        ('host = ""', 'host: got "", allowed: a host name or an IP address'),
        ('host = "a b"', 'host: got "a b", allowed: a host name or an IP address'),
        ('host = "a\\n"', 'host: got "a\\n", allowed: a host name or an IP address'),
        (f'host = " {LONG}"', f'host: got " {LONG[:75]}..., allowed: a host name or an IP address'),
        ("host = 1", "host: got 1, allowed: a host name or an IP address"),
        (
            'tls_cert = "\\u0000"\ntls_key = "a"',
            'tls_cert: got "\\u0000", allowed: the path of a file, or nothing',
        ),
        ('tls_cert = "a.pem"', 'tls_cert: got "a.pem" without tls_key, allowed: both or neither'),
        (
            'tls_key = "a.pem"\ntls_cert = ""',
            'tls_key: got "a.pem" without tls_cert, allowed: both or neither',
        ),
        ('tls_key = "a.pem"\ntls_cert = 7', "tls_cert: got 7, allowed: the path of a file, or nothing"),
        ('allowed_hosts = "a"', 'allowed_hosts: got "a", allowed: a list of strings, none of them empty'),
        ("allowed_hosts = [1]", "allowed_hosts: got [1], allowed: a list of strings, none of them empty"),
        (
            'allowed_origins = ["*", ""]',
            'allowed_origins: got ["*", ""], allowed: a list of strings, none of them empty',
        ),
        ('log_format = "xml"', f'log_format: got "xml", allowed: {ALLOWED_FORMATS}'),
        ("log_format = []", f"log_format: got [], allowed: {ALLOWED_FORMATS}"),
        ("rooms_max = 0", "rooms_max: got 0, allowed: an integer from 1 to 10000000"),
        ("head_bytes_max = 255", "head_bytes_max: got 255, allowed: an integer from 256 to 1073741824"),
        ("gather_passes_max = 65", "gather_passes_max: got 65, allowed: an integer from 0 to 64"),
        ("ping_seconds = 0", "ping_seconds: got 0, allowed: a number from 0.001 to 86400"),
        ("ping_seconds = -1.5", "ping_seconds: got -1.5, allowed: a number from 0.001 to 86400"),
        ("ping_seconds = inf", "ping_seconds: got Infinity, allowed: a number from 0.001 to 86400"),
        ("ping_seconds = nan", "ping_seconds: got NaN, allowed: a number from 0.001 to 86400"),
        ("ping_seconds = true", "ping_seconds: got true, allowed: a number from 0.001 to 86400"),
        ("prot = 1", "prot: unknown, did you mean port?"),
        ("ping-seconds = 1", "ping-seconds: unknown, did you mean ping_seconds?"),
        ("PORT = 1", "PORT: unknown, did you mean port?"),
        ("[server]\nport = 1", "server: unknown"),
        ("[namespace.chat]", "namespace: unknown, did you mean namespaces?"),
        (
            "history_meta_seconds_max = 1e9",
            "history_meta_seconds_max: got 1000000000.0, allowed: a number from 0.001 to 315360000",
        ),
        ("presence = 1", "presence: got 1, allowed: true or false"),
        (
            "force_join_leave = true",
            "force_join_leave: got true without join_leave, allowed: both, or join_leave alone",
        ),
        (
            "force_join_leave = true\njoin_leave = false",
            "force_join_leave: got true without join_leave, allowed: both, or join_leave alone",
        ),
        ("force_join_leave = true\njoin_leave = 0", "join_leave: got 0, allowed: true or false"),
        ("force_join_leave = 1", "force_join_leave: got 1, allowed: true or false"),
        ('"a\\nb" = 1', '"a\\nb": unknown'),
        ("port", "not TOML: Expected '=' after a key in a key/value pair (at end of document)"),
        ("port = 1\nhost = x\n", "not TOML: Invalid value (at line 2, column 8)"),
        ("port = 1\nport = 2\n", "not TOML: Cannot overwrite a value (at line 2, column 9)"),
    ],
)
def test_mistake_in_file(file: Path, content: str, answer: str) -> None:
    file.write_text(content)
    assert problems(file, {}, {}) == [f"hubbub.toml: {answer}"]


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("namespaces = 5", ": got 5, allowed: tables [namespaces.NAME]"),
        ("[[namespaces]]\nhistory_size = 1", ': got [{"history_size": 1}], allowed: tables [namespaces.NAME]'),
        ("namespaces.chat = 5", ".chat: got 5, allowed: a table [namespaces.NAME]"),
        ("[namespaces]\nhistory_size = 5", ".history_size: got 5, allowed: a table [namespaces.NAME]"),
        ('[namespaces.""]', f': got "", allowed: {ALLOWED_NAMES}'),
        ('[namespaces."a:b"]', f': got "a:b", allowed: {ALLOWED_NAMES}'),
        ('[namespaces."a\\n"]', f': got "a\\n", allowed: {ALLOWED_NAMES}'),
        ('[namespaces."é"]', f': got "\\u00e9", allowed: {ALLOWED_NAMES}'),
        (f"[namespaces.{LONG[:65]}]", f': got "{LONG[:65]}", allowed: {ALLOWED_NAMES}'),
        (
            '[namespaces.chat]\nhistory_size = "x"',
            '.chat.history_size: got "x", allowed: an integer from 0 to 1000000',
        ),
        ("[namespaces.chat]\npresence = 1", ".chat.presence: got 1, allowed: true or false"),
        ('[namespaces."a.b"]\npresence = 1', '."a.b".presence: got 1, allowed: true or false'),
        ("[namespaces.a.b]\npresence = true", ".a.b: unknown"),
        ("[namespaces.chat]\nhistory_sise = 1", ".chat.history_sise: unknown, did you mean history_size?"),
        ("[namespaces.chat]\nprot = 1", ".chat.prot: unknown"),
        ("[namespaces.chat]\nport = 1", ".chat.port: got 1, allowed: only at the top level, above all tables"),
        (
            "[namespaces.chat.namespaces.a]",
            '.chat.namespaces: got {"a": {}}, allowed: only at the top level, above all tables',
        ),
        (
            "[namespaces.chat]\nforce_join_leave = true",
            ".chat.force_join_leave: got true without join_leave, allowed: both, or join_leave alone",
        ),
        (
            "join_leave = true\nforce_join_leave = true\n[namespaces.chat]\njoin_leave = false",
            ".chat.join_leave: got false with force_join_leave, allowed: both, or join_leave alone",
        ),
        (
            "join_leave = true\n[namespaces.chat]\njoin_leave = false\nforce_join_leave = true",
            ".chat.force_join_leave: got true without join_leave, allowed: both, or join_leave alone",
        ),
    ],
)
def test_mistake_in_namespaces(file: Path, content: str, answer: str) -> None:
    file.write_text(content)
    assert problems(file, {}, {}) == [f"hubbub.toml: namespaces{answer}"]


def test_all_mistakes_of_all_namespaces_are_reported(file: Path) -> None:
    file.write_text(
        "force_join_leave = true\n[namespaces.a]\n[namespaces.b]\nx = 1\npresence = 1\n[namespaces.'c d']\ny = 1"
    )
    assert problems(file, {"HUBBUB_NAMESPACES": "e"}, {}) == [
        'HUBBUB_NAMESPACES: got "e", allowed: only in the TOML file',
        "hubbub.toml: force_join_leave: got true without join_leave, allowed: both, or join_leave alone",
        "hubbub.toml: namespaces.b.x: unknown",
        "hubbub.toml: namespaces.b.presence: got 1, allowed: true or false",
        f'hubbub.toml: namespaces: got "c d", allowed: {ALLOWED_NAMES}',
        'hubbub.toml: namespaces."c d".y: unknown',
    ]


def test_file_that_is_missing(file: Path) -> None:
    assert problems(file, {}, {}) == ["hubbub.toml: cannot be read: No such file or directory"]


def test_file_that_is_a_directory(file: Path) -> None:
    file.mkdir()
    assert problems(file, {}, {}) == ["hubbub.toml: cannot be read: Is a directory"]


def test_file_that_is_not_utf8(file: Path) -> None:
    file.write_bytes(b'port = 1\nhost = "\xff"\n')
    assert problems(file, {}, {}) == ["hubbub.toml: not UTF-8 (at line 2)"]


@pytest.mark.parametrize("content", [f"port = {'1' * 5000}", f"port = {'[' * 5000}"])
def test_file_that_is_too_much_for_the_parser(file: Path, content: str) -> None:
    file.write_text(content)
    (line,) = problems(file, {}, {})
    assert line.startswith("hubbub.toml: not TOML: ")


@pytest.mark.parametrize("key", ["port", "namespaces.chat.presence", "namespaces.chat.port"])
def test_tables_that_are_too_deep(file: Path, key: str) -> None:
    file.write_text(f"{key}{'.a' * 3000} = 1")
    (line,) = problems(file, {}, {})
    assert line.startswith(f"hubbub.toml: {key}: got ")
    assert len(line) < 200


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("HUBBUB_PORT", "abc", 'got "abc", allowed: an integer from 0 to 65535'),
        ("HUBBUB_PORT", "", 'got "", allowed: an integer from 0 to 65535'),
        ("HUBBUB_PORT", "true", 'got "true", allowed: an integer from 0 to 65535'),
        ("HUBBUB_PORT", "\udcff", 'got "\\udcff", allowed: an integer from 0 to 65535'),
        # What Kubernetes sets in every pod beside a service named "hubbub".
        ("HUBBUB_PORT", "tcp://10.0.0.1:80", 'got "tcp://10.0.0.1:80", allowed: an integer from 0 to 65535'),
        ("HUBBUB_SERVICE_HOST", "10.0.0.1", "unknown"),
        ("HUBBUB_PING_SECONDS", "nan", 'got "nan", allowed: a number from 0.001 to 86400'),
        ("HUBBUB_PING_SECONDS", "inf", 'got "inf", allowed: a number from 0.001 to 86400'),
        ("HUBBUB_PING_SECONDS", "25s", 'got "25s", allowed: a number from 0.001 to 86400'),
        ("HUBBUB_ALLOWED_HOSTS", "a,,b", 'got "a,,b", allowed: a list of strings, none of them empty'),
        ("HUBBUB_LOG_FORMAT", "XML", f'got "XML", allowed: {ALLOWED_FORMATS}'),
        ("HUBBUB_TLS_KEY", "key.pem", 'got "key.pem" without tls_cert, allowed: both or neither'),
        ("HUBBUB_PROT", "1", "unknown, did you mean HUBBUB_PORT?"),
        ("HUBBUB_port", "1", "unknown, did you mean HUBBUB_PORT?"),
        ("HUBBUB_XYZZY", "1", "unknown"),
        ("HUBBUB_NAMESPACES", "", 'got "", allowed: only in the TOML file'),
        ("HUBBUB_NAMESPACES", "{}", 'got "{}", allowed: only in the TOML file'),
        ("HUBBUB_NAMESPACE", "chat", "unknown"),
        (
            "HUBBUB_FORCE_JOIN_LEAVE",
            "true",
            "got true without join_leave, allowed: both, or join_leave alone",
        ),
    ],
)
def test_mistake_in_environment(name: str, value: str, answer: str) -> None:
    assert problems(None, {name: value}, {}) == [f"{name}: {answer}"]


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        ("port", "abc", '--port: got "abc", allowed: an integer from 0 to 65535'),
        ("port", True, "--port: got true, allowed: an integer from 0 to 65535"),
        ("log_format", "xml", f'--log-format: got "xml", allowed: {ALLOWED_FORMATS}'),
        ("tls_cert", "a.pem", '--tls-cert: got "a.pem" without tls_key, allowed: both or neither'),
        ("log_fromat", "json", "--log-fromat: unknown, did you mean --log-format?"),
        ("namespaces", "chat", '--namespaces: got "chat", allowed: only in the TOML file'),
    ],
)
def test_mistake_in_flags(name: str, value: object, answer: str) -> None:
    assert problems(None, {}, {name: value}) == [answer]


def test_all_mistakes_of_all_sources_are_reported(file: Path) -> None:
    file.write_text('prot = 1\nhost = ""\nport = 99999\ntls_cert = "a.pem"')
    assert problems(file, {"HUBBUB_PORT": "x", "PATH": "/bin"}, {"port": "1", "log_level": "loud"}) == [
        "hubbub.toml: prot: unknown, did you mean port?",
        'hubbub.toml: host: got "", allowed: a host name or an IP address',
        "hubbub.toml: port: got 99999, allowed: an integer from 0 to 65535",
        'HUBBUB_PORT: got "x", allowed: an integer from 0 to 65535',
        '--log-level: got "loud", allowed: one of "debug", "error", "info", "warning"',
        'hubbub.toml: tls_cert: got "a.pem" without tls_key, allowed: both or neither',
    ]


def test_later_sources_win(file: Path) -> None:
    file.write_text("port = 1\nrooms_max = 1\nhistory_size = 1")
    settings = load(file, {"HUBBUB_PORT": "2", "HUBBUB_ROOMS_MAX": "2"}, {"port": "3"})
    assert settings == Settings(port=3, rooms_max=2, history_size=1)


def test_halves_of_a_pair_may_come_from_different_sources(file: Path) -> None:
    file.write_text('tls_cert = "cert.pem"')
    settings = load(file, {"HUBBUB_TLS_KEY": "key.pem"}, {})
    assert (settings.tls_cert, settings.tls_key) == ("cert.pem", "key.pem")


def test_joins_may_be_asked_for_and_forced_by_different_sources(file: Path) -> None:
    file.write_text("[namespaces.chat]\nforce_join_leave = true")
    chat = Namespace(join_leave=True, force_join_leave=True)
    settings = load(file, {"HUBBUB_JOIN_LEAVE": "true"}, {})
    assert settings == Settings(join_leave=True, namespaces={"chat": chat})


def test_what_a_namespace_does_not_say_is_as_at_the_top_level(file: Path) -> None:
    file.write_text(
        "history_size = 1\nhistory_bytes_max = 1000\npresence = false\njoin_leave = true\n"
        "[namespaces.chat]\npresence = true\nhistory_seconds_max = 5\n[namespaces.'a.b_c-9']"
    )
    environ, flags = {"HUBBUB_HISTORY_SIZE": "2", "HUBBUB_HISTORY_BYTES_MAX": "2000"}, {"history_size": "3"}
    common: dict[str, Any] = {"history_size": 3, "history_bytes_max": 2000, "join_leave": True}
    assert load(file, environ, flags) == Settings(
        **common,
        presence=False,
        namespaces={
            "chat": Namespace(**common, presence=True, history_seconds_max=5.0),
            "a.b_c-9": Namespace(**common, presence=False),
        },
    )


def test_recovery_may_be_forced_without_history(file: Path) -> None:
    file.write_text("force_recovery = true\nhistory_size = 0\n[namespaces.chat]\nforce_recovery = true")
    assert load(file, {}, {}).namespaces == {"chat": Namespace(history_size=0)}


@pytest.mark.parametrize("room", ["chat", "news.today", "é", "news:today", "news:a:b", "news:"])
def test_room_with_a_namespace(room: str) -> None:
    settings = Settings(namespaces={"news": Namespace()})
    assert settings.namespace(room) is (settings.namespaces["news"] if ":" in room else settings)


@pytest.mark.parametrize("room", [":", ":news", "new:s", "News:today", "a:news:b"])
def test_room_without_its_namespace(room: str) -> None:
    assert Settings(namespaces={"news": Namespace()}).namespace(room) is None


def test_seconds_may_be_whole_numbers(file: Path) -> None:
    file.write_text("ping_seconds = 5")
    ping = load(file, {}, {}).ping_seconds
    assert (ping, type(ping)) == (5.0, float)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [("", []), (" ", []), ("*", ["*"]), ("a.example, b.example", ["a.example", "b.example"])],
)
def test_environment_gives_lists_with_commas(text: str, hosts: list[str]) -> None:
    assert load(None, {"HUBBUB_ALLOWED_HOSTS": text}, {}).allowed_hosts == hosts


def test_no_source_gives_the_defaults() -> None:
    assert load(None, {}, {}) == Settings()


def test_default_toml_gives_the_defaults(file: Path) -> None:
    file.write_text(default_toml())
    assert load(file, {}, {}) == Settings()
    assert list(tomllib.loads(default_toml())) == [name for name in OPTIONS if name != "namespaces"]
    assert default_toml().isascii(), "whatever the terminal's encoding"


def test_default_toml_has_the_server_first_and_an_example_last(file: Path) -> None:
    declared = Settings.__struct_fields__
    inherited = len(Namespace.__struct_fields__)
    assert list(OPTIONS) == [*declared[inherited:], *declared[:inherited]]
    everything, line, example = default_toml().partition("# [namespaces.news]\n")
    file.write_text(everything + (line + example).replace("# ", ""))
    news = Namespace(history_size=1000, history_seconds_max=86_400.0, join_leave=True)
    assert load(file, {}, {}) == Settings(namespaces={"news": news})


def test_defaults_are_allowed_by_every_source() -> None:
    texts = {
        variable(name): ",".join(option.default) if isinstance(option.default, list) else str(option.default)
        for name, option in OPTIONS.items()
        if name != "namespaces"
    }
    assert load(None, texts, {}) == Settings()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_limit_is_named_with_its_unit(name: str) -> None:
    if name.endswith("_max"):
        units = [
            "bytes",
            "seconds",
            "frames",
            "commands",
            "passes",
            "connections",
            "rooms",
            "fragments",
            "publications",
            "subscribers",
            "keys",
            "depth",
            "requests",
        ]
        what = name.removesuffix("_max").removesuffix("_burst").removesuffix("_at_once").removesuffix("_total")
        assert re.sub("_per_[a-z]+$", "", what).rpartition("_")[2] in units or what == "publications"


# Without characters that only the writer of TOML below would have to escape.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=20)
scalars = st.booleans() | st.integers() | st.floats() | texts | st.datetimes() | st.dates() | st.times() | st.just("")
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


def to_toml(value: object) -> str:
    """`value` as TOML, which `tomllib` reads and cannot write."""
    match value:
        case dict():
            return "{" + ", ".join(f"{to_toml(k)} = {to_toml(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(to_toml, value)) + "]"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case bool():
            return str(value).lower()
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return repr(value)


settings_or_junk = st.dictionaries(st.sampled_from(list(OPTIONS)) | texts, junk, max_size=4)
tables = st.fixed_dictionaries(
    {"namespaces": st.dictionaries(texts | st.just("chat"), settings_or_junk | junk, max_size=3)}
)


@given(content=settings_or_junk | tables | st.builds(dict.__or__, settings_or_junk, tables))
@settings(deadline=None)  # a file is written: that takes as long as it takes
def test_any_toml_gives_settings_or_mistakes(
    content: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "junk.toml"
    file.write_text("".join(f"{to_toml(k)} = {to_toml(v)}\n" for k, v in content.items()), encoding="utf-8")
    try:
        load(file, {}, {})
    except ConfigError as error:
        lines = error.problems
        assert lines
        assert all(line.startswith(f"{file}: ") and line.isprintable() for line in lines)
        assert not any(": not TOML" in line for line in lines), "the test wrote no TOML"


@given(name=st.sampled_from(list(OPTIONS)), text=st.text(st.characters(exclude_characters="\0")))
def test_any_environment_gives_settings_or_mistakes(name: str, text: str) -> None:
    try:
        load(None, {variable(name): text}, {})
    except ConfigError as error:
        (line,) = error.problems
        assert line.startswith(f"{variable(name)}: got ")
        assert line.isprintable()
