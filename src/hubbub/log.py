"""Logging: one pipeline, one line an entry, to one stream.

Rules:

- hubbub logs through structlog (`structlog.get_logger()`), the libraries through the standard library. Both
  end in one handler of the standard library, so they look the same.
- Nobody waits for the log: entries become text where they are made, and a thread writes them. A stream that nobody
  reads or that can't be written to (a full pipe, a full disk) costs lines, which are counted, and never the server.
- One kind of entry is written at most 20 times a second: an attack costs log lines, not the disk. After that second an
  entry of its own says how many of that kind were left out, as `suppressed`. A kind is an event and the rest of `KIND`,
  of which there are few: none of it is what clients say.
- The level is hubbub's own. Libraries are heard from WARNING up: what they say below it is for their authors.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from typing import Protocol

import structlog
from structlog.stdlib import ProcessorFormatter

from hubbub.config_types import LogFormat, LogLevel

SAME_PER_SECOND_MAX = 20
KIND = ("event", "reason", "status", "limit", "hook")
"""What the entries of a kind have in common, as far as they have it."""
LOG_BYTES_MAX = 2**20
"""How much may wait to be written."""
LAST_LINES_SECONDS_MAX = 1.0
"""How long the end waits for what is still to be written."""

log = structlog.get_logger()


class Stream(Protocol):
    """What a log is written to."""

    def write(self, text: str, /) -> object:
        """Write a line."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""


class LogWriter:
    """A stream for those who must not wait: a thread writes the lines to a file, in their order.

    A line that doesn't fit among those that wait, or can't be written, is lost. Once lines can be written again, the
    log says how many were lost since the start. To be used in a `with`: its end gives the last lines some time.
    """

    def __init__(self, file: int) -> None:
        """`file`: its number; it stays the caller's to close."""
        self._file = file
        self._lines: deque[bytes] = deque()  # the first is being written
        self._bytes = 0
        self._lost = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def __enter__(self) -> "LogWriter":
        """Start writing."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until everything is written, but not for ever: what is stuck then ends with the process."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(LAST_LINES_SECONDS_MAX)

    def write(self, text: str) -> None:
        """Have a line written. Never waits or raises."""
        line = text.encode(errors="backslashreplace")
        with self._changed:
            if self._bytes + len(line) > LOG_BYTES_MAX:
                self._lost += 1
            else:
                self._lines.append(line)
                self._bytes += len(line)
                self._changed.notify()

    def isatty(self) -> bool:
        """Whether the file is a terminal."""
        return os.isatty(self._file)

    def _run(self) -> None:
        told = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if not self._lines:
                    return
                line = self._lines[0]
            written = self._write_out(line)
            with self._changed:
                self._lines.popleft()
                self._bytes -= len(line)
                self._lost += not written
                lost = self._lost
                is_due = written and told < lost and not self._lines
            if is_due:
                told = lost
                log.warning("log lines lost", since_start=lost)

    def _write_out(self, line: bytes) -> bool:
        while line:
            try:
                line = line[os.write(self._file, line) :]
            except BlockingIOError:  # who else has the file wants it so
                waiting = select.poll()
                waiting.register(self._file, select.POLLOUT)
                waiting.poll()
            except OSError:
                return False
        return True


class Throttle:
    """A structlog processor that leaves out what repeats too fast, by its kind."""

    def __init__(self) -> None:
        # kind -> when its second began, how many since, and by which method of a logger the last came
        self._windows: dict[tuple[tuple[str, object], ...], tuple[float, int, str]] = {}
        self._lock = threading.Lock()  # the thread that writes has something to say, too

    def __call__(self, logger: object, method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Pass the entry on, or drop it."""
        if "suppressed" in entry:
            return entry
        self.settle()
        kind = tuple((name, entry[name]) for name in KIND if name in entry)
        with self._lock:
            began, count, _ = self._windows.get(kind, (time.monotonic(), 0, method))
            self._windows[kind] = began, count + 1, method
        if count >= SAME_PER_SECOND_MAX:
            raise structlog.DropEvent
        return entry

    def settle(self, at_once: bool = False) -> None:
        """Log how many were left out in the seconds that are over, or in all that have begun."""
        now = time.monotonic()
        with self._lock:
            over = [kind for kind, (began, *_) in self._windows.items() if at_once or now - began >= 1]
            windows = [(kind, *self._windows.pop(kind)[1:]) for kind in over]
        for kind, count, method in windows:
            if count > SAME_PER_SECOND_MAX:
                getattr(log, method)(**dict(kind), suppressed=count - SAME_PER_SECOND_MAX)


def tell_suppressed(at_once: bool = False) -> None:
    """Log what has been left out: in the seconds that are over, or in all that have begun."""
    for processor in structlog.get_config()["processors"]:
        if isinstance(processor, Throttle):
            processor.settle(at_once)


def configure_logging(log_format: LogFormat, log_level: LogLevel, stream: Stream) -> None:
    """Send all log entries of at least `log_level` to `stream`, in place of any earlier configuration.

    "auto" means text where `stream` is a terminal, which alone gets colours too, and JSON elsewhere.
    """
    terminal = stream.isatty()
    render: list[structlog.typing.Processor]
    if log_format == "text" or (log_format == "auto" and terminal):
        # Not rich's tracebacks, taken where rich happens to be installed: they show variables, and so secrets.
        plain = structlog.dev.plain_traceback
        render = [structlog.dev.ConsoleRenderer(colors=terminal, exception_formatter=plain)]
    else:
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    annotate: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]

    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        ProcessorFormatter(foreign_pre_chain=annotate, processors=[ProcessorFormatter.remove_processors_meta, *render])
    )
    logging.basicConfig(handlers=[handler], force=True)

    # A logger of its own lets hubbub's entries pass below the level of the libraries.
    hubbub = logging.getLogger("hubbub")
    structlog.configure(
        processors=[Throttle(), *annotate, ProcessorFormatter.wrap_for_formatter],
        logger_factory=lambda *_: hubbub,
    )
    set_log_level(log_level)


def set_log_level(log_level: LogLevel) -> None:
    """Write entries of at least that level from now on."""
    level = logging.getLevelNamesMapping()[log_level.upper()]
    logging.getLogger().setLevel(max(level, logging.WARNING))
    logging.getLogger("hubbub").setLevel(level)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
