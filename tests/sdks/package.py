"""npm's `centrifuge`, installed at first use into a folder that git ignores."""

import fcntl
import subprocess
from pathlib import Path

from tools import lack, need

CACHE = Path(__file__).with_name(".cache")
PACKAGE = "centrifuge@5"
STAMP = CACHE / f"installed-{PACKAGE}"
INSTALL_SECONDS_MAX = 60
# No script of a package runs here, and what was resolved isn't written down.
FLAGS = ("--no-save", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")


def install() -> str | None:
    """Install the package, one process at a time, unless another one just did. Returns what went wrong."""
    npm = need("npm")
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists():
            return None
        command = [npm, "install", "--prefix", str(CACHE), *FLAGS, PACKAGE]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX, check=False)
        except subprocess.TimeoutExpired:
            return f"npm didn't get {PACKAGE} within {INSTALL_SECONDS_MAX} s"
        if result.returncode:
            return f"npm couldn't get {PACKAGE}: {result.stderr.strip()[-500:]}"
        STAMP.touch()
        return None


def need_package() -> Path:
    """Return the folder whose node_modules holds npm's `centrifuge`; else skip, or fail in CI."""
    problem = None if STAMP.exists() else install()
    if problem is not None:
        lack(problem)
    return CACHE
