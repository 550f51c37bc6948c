"""python chromium.py DIRECTORY BROWSER [ARGUMENT …]: clients of npm's `centrifuge` of that directory, in a browser.

Commands on stdin, answers and events on stdout, as described in sdk.py. Each client has a page of its own.
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


async def open_page(browser: Browser, bundle: Path, who: int, url: str) -> Page:
    """Open a page with the SDK and its driver.

    The server itself answers for the page: a browser lets pages from elsewhere not reach what is local.
    """
    page = await browser.new_page(bypass_csp=True)  # the server's lets no script in
    page.on("pageerror", complain)
    await page.expose_function("tell", lambda line: tell(who, line))
    await page.goto(f"http://{urlsplit(url).netloc}/health")
    await page.add_script_tag(path=bundle)
    await page.add_script_tag(content=DRIVER + START)
    return page


async def drive(directory: Path, browser: str, arguments: list[str]) -> None:
    """Carry out what comes on stdin until it ends."""
    bundle = directory / "node_modules/centrifuge/dist/centrifuge.js"
    lines = asyncio.StreamReader(limit=2**24)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=browser, args=arguments)
        pages: dict[int, Page] = {}
        async for line in lines:
            command: dict[str, Any] = json.loads(line)
            who = command.pop("who")
            if command["do"] == "connect" and who not in pages:
                pages[who] = await open_page(chromium, bundle, who, command["url"])
            if command["do"] == "forget":
                if who in pages:
                    await pages.pop(who).close()
                tell(who, {"id": command["id"], "ok": None})
            else:
                await pages[who].evaluate("command => { window.carryOut(command) }", command)
        await chromium.close()


if __name__ == "__main__":
    asyncio.run(drive(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
