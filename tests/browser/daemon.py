"""The daemon as a process of its own, as a user starts it."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START_SECONDS_MAX = 15.0
STOP_SECONDS_MAX = 15.0
LISTENING = re.compile(r"^listening on http://127\.0\.0\.1:(\d+)$", re.MULTILINE)


class Daemon:
    """`hubbub serve`, with what it says in two files of a directory.

    Resource handling: `start` opens the process; `stop` ends it and asserts that it ended well. After either
    has raised, the process is gone too.
    """

    def __init__(self, directory: Path) -> None:
        self.port = 0
        self._stdout = directory / "stdout"
        self._stderr = directory / "stderr"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it on `port` (0, the first time: any free one) and return when it says that it listens."""
        command = [sys.executable, "-m", "hubbub", "serve", "--port", str(self.port)]
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(command, stdout=stdout, stderr=stderr)
        deadline = time.monotonic() + START_SECONDS_MAX
        while (found := LISTENING.search(self._stdout.read_text(errors="replace"))) is None:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._kill(self._process)
                pytest.fail(f"the daemon didn't start; its stderr: {self._stderr.read_text(errors='replace')}")
            time.sleep(0.02)
        self.port = int(found[1])

    def stop(self) -> None:
        """End it with SIGTERM, if it runs; it must exit with status 0 and without a traceback."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_SECONDS_MAX)
        finally:
            self._kill(process)
        said = self._stderr.read_text(errors="replace")
        assert status == 0, said
        assert "Traceback" not in said, said

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()  # does nothing to one that has ended and was waited for
        process.wait()
        self._process = None
