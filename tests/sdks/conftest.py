"""Which SDKs there are, and the end of their processes."""

from collections.abc import Iterator

import pytest

from sdks.sdk import KINDS, command_of, end_hosts


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each SDK where it runs; skipped, or failed in CI, where the machine lacks something."""
    command_of(request.param)
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    """They stay from test to test."""
    yield
    end_hosts()
