"""What some tests need of the machine."""

import os
import shutil

import pytest


def need(*names: str) -> str:
    """Return the path of the first of these programs that is there; else skip, or fail in CI."""
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    reason = f"not installed: {' or '.join(names)}"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; CI must have it")
    pytest.skip(reason)
