"""The command line: `hubbub serve`, `hubbub config default|check FILE`, `hubbub token`, `hubbub publish`.

Rules:

- Flags carry text, and only those that were given; `hubbub.config` judges them as it judges every source.
- A mistake of the operator (arguments, configuration, a port in use, a full disk at stdout) is one line each on stderr
  and status 2, never a traceback. A traceback is a mistake of ours.
- `config check` answers a question, so its lines go to stdout: `ok` and status 0, or the mistakes and 1.
- A reader of stdout may leave (`hubbub config default | head -1`) without any complaint from us.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import trio

from hubbub import __version__
from hubbub.cli_publish import KEY_VARIABLE, add_publish_arguments, run_publish
from hubbub.cli_token import add_token_arguments, run_token
from hubbub.config import Settings
from hubbub.config_sources import OPTIONS, ConfigError, default_toml, flag, load
from hubbub.log import LogWriter, configure_logging
from hubbub.model.errors import StartError

# The settings that are worth a flag; all others are for the file and the environment.
_FLAGS = ("host", "port", "log_format", "log_level", "tls_cert", "tls_key")
_STDERR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in `argv`, or in `sys.argv` if None, and return its exit status.

    Raises SystemExit for `--help`, `--version` and what is no command, as argparse does.
    """
    _open_closed_streams()
    try:
        try:
            return _run_command(argv)
        finally:
            _say("")  # flushes what argparse printed
    except StartError as error:
        return _refuse([str(error)])


def _run_command(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        # By the parser of the command: argparse would let the outermost say so, with the usage of that.
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    match arguments.command:
        case "serve":
            return _serve(arguments)
        case "default":
            _say(default_toml())
            return 0
        case "check":
            return _check(arguments.file)
        case "token":
            return _run_tool(run_token, arguments)
        case "publish":
            return _run_tool(run_publish, arguments)
    parser.print_help()
    return 2


def _open_closed_streams() -> None:
    """Open the standard streams that were closed for us, to nowhere: else a socket would get the number of one."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115 - stays open


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hubbub", description="A real-time chat and messaging server.", allow_abbrev=False
    )
    parser.set_defaults(parser=parser)
    parser.add_argument("--version", action="version", version=f"hubbub {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the server", allow_abbrev=False)
    serve.add_argument("--config", type=Path, metavar="FILE", help="TOML file with settings")
    for name in _FLAGS:
        option = OPTIONS[name]
        serve.add_argument(flag(name), metavar="VALUE", help=f"{option.description} Allowed: {option.allowed}.")

    serve.add_argument("--open", action="store_true", help="let strangers in: anonymous = true")

    token = commands.add_parser("token", help="make or explain a token", allow_abbrev=False)
    add_token_arguments(token)

    publish = commands.add_parser("publish", help="say something in a room", allow_abbrev=False)
    add_publish_arguments(publish)

    config = commands.add_parser("config", help="show or check settings", allow_abbrev=False)
    # The same `dest`: the inner command replaces "config".
    actions = config.add_subparsers(dest="command", metavar="ACTION", required=True)
    default = actions.add_parser("default", help="print a TOML file with every setting, its meaning and default")
    check = actions.add_parser("check", help="report every mistake in a TOML file")
    check.add_argument("file", type=Path, metavar="FILE")
    for command in (serve, token, publish, default, check):
        command.set_defaults(parser=command)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    flags = {name: value for name in _FLAGS if (value := getattr(arguments, name)) is not None}
    if arguments.open:
        flags["anonymous"] = "true"
    try:
        settings = load(arguments.config, _environment(), flags)
    except ConfigError as error:
        return _refuse(error.problems)
    return _run(settings, lambda: load(arguments.config, _environment(), flags))


def _run(settings: Settings, wanted: Callable[[], Settings]) -> int:
    # Imported late, as the other commands need nothing of the server.
    from hubbub.daemon import run_daemon

    status = 0
    problems: list[str] = []
    try:
        with LogWriter(_STDERR) as stream:
            configure_logging(settings.log_format, settings.log_level, stream)
            status = trio.run(run_daemon, settings, _announce, wanted)
    except* StartError as group:  # alone, or as one nursery or several wrapped it
        problems = [str(error) for error in _leaves(group)]
    return _refuse(problems) if problems else status


def _run_tool(tool: Callable[[argparse.Namespace, Settings], tuple[int, str]], arguments: argparse.Namespace) -> int:
    try:
        settings = load(arguments.config, _environment(), {})
        status, text = tool(arguments, settings)
    except ConfigError as error:
        return _refuse(error.problems)
    _say(text + "\n")
    return status


def _environment() -> dict[str, str]:
    """Return the environment without the key of `hubbub publish` and of back ends, which is no setting."""
    return {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _check(file: Path) -> int:
    try:
        load(file, environ={}, flags={})
    except ConfigError as error:
        _say("".join(f"{problem}\n" for problem in error.problems))
        return 1
    _say("ok\n")
    return 0


def _announce(url: str) -> None:
    _say(f"listening on {url}\n")


def _refuse(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"hubbub: {problem}", file=sys.stderr)
    return 2


def _say(text: str) -> None:
    """Write `text` to stdout at once; if its reader has left, to nowhere.

    Raises:
        StartError: it can't be written.
    """
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # The text is still buffered, and Python would try it again when it exits, and complain.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise StartError(f"can't write to stdout: {error.strerror}") from error
