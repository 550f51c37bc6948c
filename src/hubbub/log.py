"""Logging: one pipeline, one line an entry, to one stream.

Rules:

- hubbub logs through structlog (`structlog.get_logger()`), the libraries through the standard library. Both
  end in one handler of the standard library, so they look the same, and a stream that cannot be written to
  (a full disk, a closed pipe) costs log entries but never raises into the server.
- One event is written at most 20 times a second: an attack costs log lines, not the disk. The next entry of that
  event says how many were left out, as `suppressed`.
- The level is hubbub's own. Libraries are heard from WARNING up: what they say below it is for their authors.
"""

import logging
import time
from typing import TextIO

import structlog
from structlog.stdlib import ProcessorFormatter

from hubbub.config_types import LogFormat, LogLevel

SAME_PER_SECOND_MAX = 20


class Throttle:
    """A structlog processor that leaves out what repeats too fast, by the event's name."""

    def __init__(self) -> None:
        self._windows: dict[str, tuple[float, int]] = {}  # event -> when its second began, how many since

    def __call__(self, logger: object, method: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Pass the entry on, or drop it."""
        event, now = str(entry.get("event")), time.monotonic()
        began, count = self._windows.get(event, (now, 0))
        if now - began >= 1:
            if count > SAME_PER_SECOND_MAX:
                entry["suppressed"] = count - SAME_PER_SECOND_MAX
            began, count = now, 0
        self._windows[event] = (began, count + 1)
        if count >= SAME_PER_SECOND_MAX:
            raise structlog.DropEvent
        return entry


def configure_logging(log_format: LogFormat, log_level: LogLevel, stream: TextIO) -> None:
    """Send all log entries of at least `log_level` to `stream`, in place of any earlier configuration.

    "auto" means text where `stream` is a terminal, which alone gets colours too, and JSON elsewhere.
    """
    terminal = stream.isatty()
    level = logging.getLevelNamesMapping()[log_level.upper()]
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
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)

    # A logger of its own lets hubbub's entries pass below the level of the libraries.
    hubbub = logging.getLogger("hubbub")
    hubbub.setLevel(level)
    structlog.configure(
        processors=[Throttle(), *annotate, ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: hubbub,
    )
