"""python chromium.py DIRECTORY BROWSER [ARGUMENT …]: clients of npm's `centrifuge` of that directory, in a browser.

Commands on stdin, answers and events on stdout, as described in sdk.py. Each client has a page to itself.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.async_api import Browser, Error, Page, async_playwright

DRIVER = Path(__file__).with_name("driver.mjs").read_text().replace("export function", "function")
"""No module here: a module runs some time after it was added."""
START = "\nwindow.carryOut = makeDriver(Centrifuge, line => window.tell(line));"


def tell(who: int, line: dict[str, Any]) -> None:
    """Say something."""
    sys.stdout.write(json.dumps({"who": who, **line}) + "\n")
    sys.stdout.flush()


def complain(error: Error) -> None:
    """Note what went wrong in a page."""
    sys.stderr.write(f"{error}\n")


class Tab:
    """A page, for one client after the other; making one takes much longer than going elsewhere."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.who = 0

    async def open(self, bundle: Path, who: int, url: str) -> None:
        """Load the SDK and its driver, for that client.

        The server itself answers for the page: a browser lets pages from elsewhere not reach what is local.
        """
        self.who = who
        await self.page.goto(f"http://{urlsplit(url).netloc}/health")
        await self.page.add_script_tag(path=bundle)
        await self.page.add_script_tag(content=DRIVER + START)

    async def leave(self) -> None:
        """Forget the client."""
        await self.page.goto("about:blank")


async def open_tab(browser: Browser) -> Tab:
    """Open an empty page."""
    tab = Tab(await browser.new_page(bypass_csp=True))  # the server's lets no script in
    tab.page.on("pageerror", complain)
    await tab.page.expose_function("tell", lambda line: tell(tab.who, line))
    return tab


async def drive(directory: Path, browser: str, arguments: list[str]) -> None:
    """Carry out what comes on stdin until it ends."""
    bundle = directory / "node_modules/centrifuge/dist/centrifuge.js"
    lines = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=browser, args=arguments)
        tabs: dict[int, Tab] = {}
        spare: list[Tab] = []
        async for line in lines:
            command: dict[str, Any] = json.loads(line)
            who = command.pop("who")
            if command["do"] in ("open", "connect") and who not in tabs:
                tabs[who] = spare.pop() if spare else await open_tab(chromium)
                await tabs[who].open(bundle, who, command["url"])
            if command["do"] == "forget":
                if who in tabs:
                    await tabs[who].leave()
                    spare.append(tabs.pop(who))
                tell(who, {"id": command["id"], "ok": None})
            else:
                await tabs[who].page.evaluate("command => { window.carryOut(command) }", command)
        await chromium.close()


if __name__ == "__main__":
    asyncio.run(drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
