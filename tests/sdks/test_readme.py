"""The README's examples for SDKs, run as they stand there, but for the port, and for how long they listen."""

import re
import subprocess
import sys
from pathlib import Path

from sdks.package import need_package
from servers import open_daemon
from tools import need_node_with_websocket

README = Path(__file__).parents[2] / "README.md"


def example(language: str, begins: str, port: int) -> str:
    """Return the README's code block that begins like this, for a server at that port."""
    found = re.search(rf"```{language}\n({re.escape(begins)}.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1].replace("localhost:8000", f"localhost:{port}")


def test_javascript(tmp_path: Path) -> None:
    node, packages = need_node_with_websocket(), need_package()
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    with open_daemon() as daemon:
        code = example("js", "import { Centrifuge }", daemon.port)
        (tmp_path / "example.mjs").write_text(code + "\nsetTimeout(() => process.exit(0), 300);\n")
        result = subprocess.run(
            [*node, "example.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
        )
    assert result.stdout == "hello\n", result.stderr


def test_python() -> None:
    with open_daemon() as daemon:
        code = example("python", "import asyncio", daemon.port).replace("sleep(60)", "sleep(0.3)")
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert result.stdout == "hello\n", result.stderr
