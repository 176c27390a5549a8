"""The systemd unit: systemd itself reads it, rates how much it may do, and waits longer for the server than the server waits."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY, tool

UNIT = DEPLOY / "quire.service"
MAX_EXPOSURE = 2.0
"""Of 10; 2.0 is what systemd calls OK."""


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a program that exists here."""
    text = UNIT.read_text()
    assert text.count("/opt/quire/bin/quire serve") == 1
    copy = tmp_path / "quire.service"
    copy.write_text(text.replace("/opt/quire/bin/quire serve", "/bin/true serve"))
    return copy


def analyze(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [tool("systemd-analyze", "Debian's package systemd"), "--no-pager", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_systemd_understands_it(unit: Path) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=no", unit)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_systemd_refuses_another(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=gently"))
    assert "kill mode" in analyze("verify", "--man=no", "--recursive-errors=no", unit).stderr


def test_it_may_do_little(unit: Path) -> None:
    done = analyze("security", "--offline=true", f"--threshold={int(MAX_EXPOSURE * 10)}", unit)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_waits_longer_than_the_server() -> None:
    text = UNIT.read_text()
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    (drain,) = re.findall(r"--shutdown-timeout (\d+)", text)
    assert int(stop) > int(drain) and "KillSignal=SIGTERM" in text
