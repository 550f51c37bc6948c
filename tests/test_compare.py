"""The comparison and the chat benchmark run, as far as that needs no rival; and who isn't there is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks need Linux")

BENCH = Path(__file__).parent.parent / "bench"


def run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a script to its end."""
    command = [sys.executable, str(BENCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=80)


def test_chat(tmp_path: Path) -> None:
    """All that is said is heard by all, and costs something."""
    file = tmp_path / "out.json"
    short = ("--seconds", "0.3", "--warmup", "0.1", "--repeat", "1", "--no-pin")
    result = run("chat.py", "--clients", "8", "--batch", "3", *short, "--json", str(file))
    assert result.returncode == 0, result.stderr
    assert "median" in result.stdout
    assert json.loads(file.read_text())


def test_compare_with_nobody() -> None:
    """A table, the goals, and no figure where there is no rival."""
    result = run("compare.py", "--contestants", "hubbub", "--rows", "chat32", "--quick")
    assert result.returncode == 0, result.stderr
    assert "hubbub" in result.stdout
    assert "no figure" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("compare.py", "--rows", "r7"),
        ("compare.py", "--contestants", "nobody"),
        ("compare.py", "--rounds", "0"),
        ("compare.py", "--json", "/nowhere/x"),
        ("chat.py", "--size", "30"),
        ("chat.py", "--pid", "1"),
        ("chat.py", "--plot", "/nowhere/x"),
    ],
)
def test_mistakes_of_its_user(arguments: tuple[str, str, str]) -> None:
    """One line, and status 2."""
    script, flag, _ = arguments
    result = run(*arguments)
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith(f"{script}: argument {flag}: ")
    assert result.stderr.count("\n") == 1
