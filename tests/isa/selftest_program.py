"""Builds csrc/cpu/selftest, natively or for another architecture, and runs it, under an emulator if need be."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_ARM_TOOLCHAIN = REPOSITORY / "cmake" / "aarch64-linux-gnu.cmake"


def need(*programs: str) -> None:
    """Skip the test where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: cmake, ninja-build, qemu-user, g++-aarch64-linux-gnu)")


@functools.cache
def build(architecture: str = "native") -> Path:
    """The folder of a build for "native" or "aarch64"; kept in build/, so that a second call compiles only what changed."""
    folder = REPOSITORY / "build" / f"selftest-{architecture}"
    options = ["-G", "Ninja", "-DQUIRE_SELFTEST=ON", "-DCMAKE_BUILD_TYPE=Release"]
    if architecture == "aarch64":
        options.append(f"-DCMAKE_TOOLCHAIN_FILE={_ARM_TOOLCHAIN}")
    _check_call(["cmake", "-S", str(REPOSITORY), "-B", str(folder), *options])
    _check_call(["cmake", "--build", str(folder)])
    return folder / "csrc" / "cpu"


def objects(architecture: str = "native") -> list[Path]:
    """What the compiler made of each source file, those of the program itself left out."""
    return sorted((build(architecture) / "CMakeFiles" / "kernel_selftest.dir").glob("*.o"))


@dataclass(frozen=True)
class Outcome:
    """What a run of the program printed."""

    levels: list[str]
    """Those that the processor has."""
    emulated: list[str]
    """Those whose instructions the program carries out itself."""
    hashes: dict[str, str]
    """By case; the same on every machine."""


def run(*emulator: str, architecture: str = "native") -> Outcome:
    """Run it to the end; fails the test if a level's bits differ or an instruction is illegal."""
    program = build(architecture) / "kernel_selftest"
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    first, *lines, last = done.stdout.splitlines()
    assert last == "ok"
    levels = first.split()[1:]
    emulated = [level.removesuffix("(emulated)") for level in levels if level.endswith("(emulated)")]
    own = [level for level in levels if not level.endswith("(emulated)")]
    return Outcome(own, emulated, dict(reversed(line.split(" ", 1)) for line in lines))


def level_of(name: str, levels: set[str]) -> str | None:
    """The level whose namespace or file a name belongs to, or None."""
    found = re.search(r"(?:quire::|_)(" + "|".join(sorted(levels, key=len, reverse=True)) + r")(?:::|\.cpp\.o$)", name)
    return found.group(1) if found else None


def _check_call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
