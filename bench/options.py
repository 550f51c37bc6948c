"""The options of the benchmarks: the parser, what numbers may be, the options that several share, and the checks."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn
from urllib.parse import urlsplit

from dialects import DIALECTS, STAMP_SIZE
from loadgen import Target

ROOM_URL, SERVER_URL = "ws://HOST:PORT/PATH", "ws://HOST:PORT"
SPARE_SECONDS = 120  # that a measurement may take beyond what it should
DEADLINE = f"for each measurement ({SPARE_SECONDS} more than it should take)"
_Kind = type[int] | type[float]


class Parser(argparse.ArgumentParser):
    """A benchmark's options, with their defaults in the help; a wrong one is told in one line, without the usage."""

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=name, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End the program with status 2."""
        self.exit(2, f"{self.prog}: {message}\n")

    # One kind each.

    def whole(self, name: str, default: int | None, of: str, *, least: int = 1, metavar: str = "N") -> None:
        """An option that takes a whole number; without a default, `of` says what holds then."""
        self.add_argument(name, type=_number(int, least), default=default, metavar=metavar, help=_help(of, default))

    def real(self, name: str, default: float | None, of: str, *, least: float = 0.01, metavar: str = "SECONDS") -> None:
        """An option that takes any number; without a default, `of` says what holds then."""
        self.add_argument(name, type=_number(float, least), default=default, metavar=metavar, help=_help(of, default))

    def listed(self, name: str, kind: _Kind, default: Sequence[float], of: str, *, least: int, metavar: str) -> None:
        """An option that takes numbers with commas."""
        shown = ",".join(f"{value:.0f}" for value in default)
        self.add_argument(name, type=_numbers(kind, least), default=default, metavar=metavar, help=_help(of, shown))

    # Those that several benchmarks have.

    def size(self) -> None:
        """How long a message is."""
        self.whole("--size", 100, "of a message", least=STAMP_SIZE, metavar="BYTES")

    def times(self, seconds: float, warmup: float, repeat: int, each: str = "", least: float = 0.01) -> None:
        """How long is measured, after which warm-up, and how often."""
        self.real("--seconds", seconds, f"to measure{each and ' ' + each}")
        self.real("--warmup", warmup, "before it", least=least)
        self.repeat(repeat)

    def repeat(self, default: int) -> None:
        """How often."""
        self.whole("--repeat", default, "times, each with a fresh daemon")

    def dialect_room(self) -> None:
        """One room in one dialect; `check_dialects` has the rest."""
        self.add_argument("--dialect", choices=DIALECTS, default="plain", help="what is spoken in the room (plain)")
        self.whole("--connections", 100, "subscribers in the room")
        which = "of the connections in plain, besides them in centrifugo"
        self.whole("--publishers", None, f"how many publish in turn: {which} (10, or all if fewer)")
        of = "of a delivery's payload (100 in plain, 200 where centrifugo is measured)"
        self.whole("--size", None, of, metavar="BYTES")

    def files(self) -> None:
        """Where the result is written to."""
        self.add_argument("--json", metavar="FILE", help="write the result there, too")
        self.add_argument("--plot", metavar="FILE", help="draw it there, as SVG (needs matplotlib)")

    def common(self, url: str, *, deadline: str = "") -> None:
        """What all have that measure one server. `deadline` says what it is, if it isn't ten minutes."""
        what = "a room of a running server" if url == ROOM_URL else "a running hubbub, instead of a fresh daemon"
        self.add_argument("--url", type=_target(url), dest="target", metavar=url, help=what)
        self.add_argument("--pid", type=_number(int, 1), help="the process behind --url: for its CPU time and memory")
        self.files()
        self.real("--deadline", None if deadline else 600, deadline or "for each measurement")
        pinned = "don't pin the daemon to one core and the generator to another"
        self.add_argument("--no-pin", action="store_true", help=pinned)

    # The checks.

    def checked(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options; what can't be used ends the program with status 2."""
        options = self.parse_args(arguments)
        if pid := getattr(options, "pid", None):
            if not options.target:
                self.error("argument --pid: only with --url")
            if not os.path.exists(f"/proc/{pid}"):
                self.error(f"argument --pid: there is no process {pid}")
            if listens(pid, options.target.port) is False:
                what = f"process {pid} doesn't listen on port {options.target.port}"
                self.error(f"argument --pid: {what} (perhaps one does that it has started)")
            options.target = replace(options.target, pid=pid)
        if getattr(options, "plot", None) and not importlib.util.find_spec("matplotlib"):
            self.error("argument --plot: needs matplotlib, which isn't installed: pip install matplotlib")
        for name in ("json", "plot"):
            if file := getattr(options, name, None):
                try:
                    open(file, "a").close()
                except OSError as error:
                    self.error(f"argument --{name}: {error}")
        return options

    def check_dialects(self, options: argparse.Namespace, names: Sequence[str]) -> None:
        """The options of `dialect_room`, where all these dialects are measured: what is missing is added."""
        dialects = [DIALECTS[name] for name in names]
        least = max(dialect.size_min for dialect in dialects)
        options.size = options.size or max(dialect.size_default for dialect in dialects)
        if options.size < least:
            self.error(f"argument --size: a whole number from {least} expected, not '{options.size}'")
        options.publishers = options.publishers or min(10, options.connections)
        if options.publishers > options.connections and not all(dialect.publishers_apart for dialect in dialects):
            self.error("argument --publishers: more than --connections")


def plan(options: argparse.Namespace, seconds: float, connections: int) -> None:
    """Without --deadline, set it: for a measurement that should take so long once so many connections are open."""
    options.deadline = options.deadline or seconds + connections / 100 + SPARE_SECONDS


def listens(pid: int, port: int) -> bool | None:
    """Whether a process has a socket that listens on a port; None if that can't be known.

    It can't of somebody else's process, nor in another network namespace, to which another port may be forwarded.
    """
    try:
        if os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net"):
            return None
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:
        return None
    inodes = {inode for table in ("tcp", "tcp6") for inode in _listening(table, port)}
    return any(f"socket:[{inode}]" in links for inode in inodes)


def _listening(table: str, port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a port, of one of the kernel's tables."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/net/{table}") as file:  # there may be no IPv6
        for _, local, _, state, *_, inode in (line.split()[:10] for line in list(file)[1:]):
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                yield inode


def _help(of: str, default: object) -> str:
    return of if default is None else f"{of} ({default})"


def _number(kind: _Kind, least: float, what: str = "") -> Callable[[str], float]:
    what = what or f"a {'whole ' * (kind is int)}number from {least:g}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = -1
        if not least <= value < 1e9:
            raise argparse.ArgumentTypeError(f"{what} expected, not {text!r}")
        return value

    return parse


def _numbers(kind: _Kind, least: int) -> Callable[[str], list[float]]:
    parse = _number(kind, least, f"{'whole ' * (kind is int)}numbers from {least}")
    return lambda text: [parse(part) for part in text.split(",")]


def _target(form: str) -> Callable[[str], Target]:
    def parse(text: str) -> Target:
        wrong = argparse.ArgumentTypeError(f"{form} expected, not {text!r}")
        try:
            url = urlsplit(text)
            host, port = url.hostname, url.port
        except ValueError:
            raise wrong from None
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        fits = path == "/" if form == SERVER_URL else bool(url.path)  # who means "/" says so
        if not host or not port or url.scheme != "ws" or not fits:
            raise wrong
        return Target(host, port, path)

    return parse
