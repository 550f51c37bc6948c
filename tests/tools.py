"""What some tests need of the machine."""

import os
import shutil
import subprocess
from typing import NoReturn

import pytest


def lack(reason: str) -> NoReturn:
    """Skip the test, for want of that; or fail in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; CI must have it")
    pytest.skip(reason)


def need(*names: str) -> str:
    """Return the path of the first of these programs that is there; else skip, or fail in CI."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    lack(f"not installed: {' or '.join(names)}")


def need_node_with_websocket() -> list[str]:
    """Return the command for a Node that has the browsers' WebSocket: since 22, with a flag since 20.10; else skip."""
    node = need("node")
    for command in ([node], [node, "--experimental-websocket"]):
        result = subprocess.run([*command, "-e", "WebSocket"], capture_output=True, timeout=30, check=False)
        if result.returncode == 0:
            return command
    lack("this Node has no WebSocket; 20.10 or newer has")
