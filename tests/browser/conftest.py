"""A real Chromium and a real daemon: what the browser tests stand on."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect, sync_playwright

from browser.daemon import Daemon
from tools import lack

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
)
PAGE_MILLISECONDS_MAX = 10_000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for a module, for tests that use rooms of their own."""
    daemon = Daemon(tmp_path_factory.mktemp("daemon"))
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon for one test, which may stop and start it."""
    daemon = Daemon(tmp_path)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium. None found: skip; in CI that is a failure.

    Playwright's sync API keeps an asyncio loop in this thread, so it ends with the module and not with the
    session: other modules' tests run Trio here.
    """
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        lack(f"no Chromium found: looked for {', '.join(CHROMIUM_NAMES)}")
    expect.set_options(timeout=PAGE_MILLISECONDS_MAX)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        except Error as error:
            lack(f"no Chromium found: {path} didn't start: {error}")
        yield browser
        browser.close()


@pytest.fixture
def window(browser: Browser) -> Iterator[Callable[[], Page]]:
    """Make windows that share nothing: each call opens one with its own cookies and storage."""
    contexts: list[BrowserContext] = []

    def open_window() -> Page:
        context = browser.new_context()
        context.set_default_timeout(PAGE_MILLISECONDS_MAX)
        contexts.append(context)
        return context.new_page()

    yield open_window
    for context in contexts:
        context.close()
