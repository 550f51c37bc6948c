"""The contestants of compare.py: how each is installed from its registry, started, pinned, and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dialects import BenchError
from loadgen import Target, fault, notice, pin
from report import FROM_OUTSIDE, commit, environment

RIVALS = Path(__file__).parent / "rivals"
INSTALL_SECONDS_MAX = 600
START_SECONDS_MAX = 30
ABOUT_HUBBUB = """
import hubbub, json, platform, trio
about = {"file": hubbub.__file__, "hubbub": hubbub.__version__, "trio": trio.__version__}
print(json.dumps(about | {"python": platform.python_version()}))
"""


class Missing(Exception):
    """A rival can't be had on this machine; the text says why."""


@dataclass(frozen=True)
class Contestant:
    """A server that sends each text message to everyone in its one room, the sender included.

    `prepare` installs it where it isn't, and returns the command to which the port is added, and the version.
    """

    name: str
    title: str
    prepare: Callable[[Scratch], tuple[Sequence[str], str]]
    after_port: tuple[str, ...] = ()
    path: str = "/"
    dialect: str = "plain"


@dataclass(frozen=True)
class Entrant:
    """A contestant that is there."""

    contestant: Contestant
    command: tuple[str, ...]
    version: str


class Scratch:
    """The folder to which rivals are installed; what is there already is used again, so a repeat needs no registry."""

    def __init__(self, folder: Path, hubbub_python: str) -> None:
        self.folder, self.hubbub_python = folder.absolute(), hubbub_python
        self._python = self.folder / "venv" / "bin" / "python"

    def python(self, script: str, packages: Sequence[str]) -> tuple[Sequence[str], str]:
        """A Python rival: in one environment with the others, made by the Python that runs hubbub."""
        names = [package.partition("[")[0] for package in packages]
        told = f"import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in {names!r}), sep=', ')"
        try:
            version = _run([str(self._python), "-c", told])
        except Missing:
            self._make_environment()
            notice(f"installing {', '.join(packages)}")
            _run([str(self._python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages])
            version = _run([str(self._python), "-c", told])
        return [str(self._python), str(RIVALS / script)], version

    def _make_environment(self) -> None:
        """Unless there is one that is whole: the making of one may have been interrupted."""
        try:
            _run([str(self._python), "-m", "pip", "--version"])
        except Missing:
            _run([self.hubbub_python, "-m", "venv", "--clear", str(self.folder / "venv")])

    def npm(self, package: str) -> Path:
        """Where a package for Node is."""
        found = self.folder / "node_modules" / package
        if not found.exists():
            notice(f"installing {package}")
            self.folder.mkdir(parents=True, exist_ok=True)
            _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(self.folder), package])
        return found

    def copied(self, script: str) -> str:
        """A script beside the packages it imports: Node looks for them in the folders above the script's own."""
        return shutil.copy(str(RIVALS / script), str(self.folder / script))


def _run(command: Sequence[str]) -> str:
    """What a command says; Missing if it can't be run or fails."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
    except FileNotFoundError:
        raise Missing(f"there is no {command[0]} on this machine") from None
    except OSError as error:
        raise Missing(str(error)) from None
    with process:
        try:
            output, errors = process.communicate(timeout=INSTALL_SECONDS_MAX)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with those that it has started
            if isinstance(error, subprocess.TimeoutExpired):
                raise Missing(str(error)) from None
            raise
    if process.returncode:
        said = (errors.strip() or output.strip() or "nothing").splitlines()
        raise Missing(f"{Path(command[0]).name} ended with {process.returncode} and said: {' / '.join(said[-3:])}")
    return output.strip()


def _hubbub(scratch: Scratch) -> tuple[Sequence[str], str]:
    python = scratch.hubbub_python
    told = _run([python, "-c", ABOUT_HUBBUB])
    try:
        about = json.loads(told)
        file, hubbub, trio, own = (about[name] for name in ("file", "hubbub", "trio", "python"))
    except (ValueError, LookupError, TypeError):
        raise Missing(f"{python} isn't a Python: asked for hubbub's version, it said {told[:100]!r}") from None
    of = f" ({found})" if (found := commit(Path(file))) else ""
    version = f"hubbub {hubbub}{of}, trio {trio}, Python {own}"
    return [python, "-m", "hubbub", "serve", "--log-level", "warning", "--port"], version


def _bun(scratch: Scratch) -> tuple[Sequence[str], str]:
    """The package's own binary, or the platform's (there is one for processors without AVX2), whichever runs."""
    package = scratch.npm("bun")
    reason = "the package has no binary"
    for binary in (package / "bin" / "bun.exe", *sorted((package.parent / "@oven").glob("*/bin/bun"))):
        try:
            return [str(binary), scratch.copied("bun_server.ts")], f"bun {_run([str(binary), '--version'])}"
        except Missing as missing:
            reason = str(missing)
    raise Missing(reason)


def _ws(scratch: Scratch) -> tuple[Sequence[str], str]:
    node = _run(["node", "--version"])
    version = json.loads((scratch.npm("ws") / "package.json").read_text())["version"]
    return ["node", scratch.copied("ws_server.mjs")], f"ws {version}, node {node}"


def _floor(scratch: Scratch) -> tuple[Sequence[str], str]:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise Missing("there is no C compiler (cc, gcc, clang) on this machine")
    scratch.folder.mkdir(parents=True, exist_ok=True)
    program = str(scratch.folder / "floor")
    _run([compiler, "-O2", "-o", program, str(RIVALS / "floor.c")])
    return [program], _run([compiler, "--version"]).splitlines()[0]


def _in_python(script: str, *packages: str) -> Callable[[Scratch], tuple[Sequence[str], str]]:
    return lambda scratch: scratch.python(script, packages)


CONTESTANTS = {
    one.name: one
    for one in (
        Contestant("hubbub", "hubbub", _hubbub, path="/chat/bench"),
        Contestant("structured", "hubbub, structured", _hubbub, path="/connection/websocket", dialect="centrifugo"),
        Contestant("floor", "C floor", _floor),
        Contestant("coalesced", "C floor, coalesced", _floor, after_port=("--coalesce",)),
        Contestant("bun", "Bun", _bun),
        Contestant("picows", "picows", _in_python("picows_server.py", "picows", "uvloop")),
        Contestant("ws", "Node ws", _ws),
        Contestant("websockets", "websockets", _in_python("websockets_server.py", "websockets", "uvloop")),
        Contestant("fastapi", "FastAPI", _in_python("fastapi_server.py", "fastapi", "uvicorn[standard]")),
        Contestant("trio", "trio-websocket", _in_python("trio_websocket_server.py", "trio-websocket", "trio")),
    )
}


def prepare(names: Sequence[str], scratch: Scratch) -> tuple[list[Entrant], dict[str, str]]:
    """Those who can take part, and why the others can't, by their title."""
    entrants, missing = [], {}
    for contestant in (CONTESTANTS[name] for name in names):
        try:
            command, version = contestant.prepare(scratch)
        except Missing as reason:
            missing[contestant.title] = str(reason)
        else:
            entrants.append(Entrant(contestant, tuple(command), version))
    return entrants, missing


def settings(contestant: Contestant, connections: int) -> Mapping[str, str]:
    """What a contestant is told by the environment, if it is hubbub."""
    if "hubbub" not in contestant.title:
        return {}
    return environment(connections) | (FROM_OUTSIDE if contestant.dialect != "plain" else {})


class Server:
    """An entrant's process: started on entry, a `Target` once it listens, killed on exit.

    *Error handling*: if it ended by itself, there is no result, even if nothing else was wrong.
    """

    def __init__(self, entrant: Entrant, connections: int, core: int | None) -> None:
        self._entrant, self._connections, self._core = entrant, connections, core

    def __enter__(self) -> Target:
        contestant, port = self._entrant.contestant, _free_port()
        self._output = tempfile.TemporaryFile()  # not a pipe: nobody would read it
        self._process = subprocess.Popen(
            [*self._entrant.command, str(port), *contestant.after_port],
            env={**settings(contestant, self._connections), **os.environ},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            preexec_fn=self._pin_self,  # before its first thread is started
            process_group=0,  # whoever presses Ctrl-C stops the benchmark, which then stops the server
        )
        try:
            self._await_listening(port)
            if self._core is not None:
                pin(self._process.pid, self._core)
        except BaseException:
            self._stop()
            raise
        return Target("127.0.0.1", port, contestant.path, self._process.pid)

    def __exit__(self, *exception: object) -> None:
        status = self._process.poll()
        self._stop()
        with self._output:
            if status is not None:
                title = self._entrant.contestant.title
                fault(f"{title} ended by itself with {status}, and said: {self._said()}", exception)

    def _pin_self(self) -> None:
        if self._core is not None:
            os.sched_setaffinity(0, {self._core})

    def _await_listening(self, port: int) -> None:
        """Look in the kernel's table: a connection to try it would be one that the server has to deal with."""
        until = time.monotonic() + START_SECONDS_MAX
        listening = f"0100007F:{port:04X} 00000000:0000 0A"
        while listening not in Path("/proc/net/tcp").read_text():
            if self._process.poll() is not None or time.monotonic() > until:
                raise BenchError(f"it never listened, but said: {self._said()}")
            time.sleep(0.02)

    def _said(self) -> str:
        return os.pread(self._output.fileno(), 1 << 16, 0).decode(errors="replace").strip()[-1500:] or "nothing"

    def _stop(self) -> None:
        self._process.terminate()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        finally:
            self._process.kill()
            self._process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
