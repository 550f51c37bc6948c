"""What concerns every test."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Measure coverage once in a worker of pytest-xdist.

    There, pytest-cov 7 starts it while it is loaded, as in a process without workers, and again for the worker: all
    tests would take twice as long, and `no_cover` would have no effect. The first is ended before the second begins.
    """
    plugin = session.config.pluginmanager.get_plugin("_cov")
    if hasattr(session.config, "workerinput") and plugin is not None and plugin.cov_controller is not None:
        plugin.cov_controller.cov.stop()
