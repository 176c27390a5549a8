"""No code outside a level's files may contain that level's instructions, and the linker must not be able to mix levels.

The objects are those of the self-test program: the same sources, flags and compiler as the extension's.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.isa import selftest_program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86-64 code"),
]

LEVELS = {"generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_amx"}
_TILES = "%tmm|tilecfg|tilerelease"
# Wide registers, masks, tiles, or any instruction in VEX or EVEX coding.
_VECTOR = re.compile(rf"%[yz]mm|%k[0-7]|^v[a-z]|{_TILES}")


@pytest.fixture(scope="module")
def objects():
    selftest_program.need("cmake", "ninja", "c++", "objdump", "nm")
    return selftest_program.objects()


def output_of(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def functions_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(demangled name, instructions) of each function in a binary."""
    name, body = "", []
    for line in output_of("objdump", "-d", "-C", "--no-show-raw-insn", str(path)):
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            yield name, body
            name, body = header.group(1), []
        elif "\t" in line:
            body.append(line.split("\t", 1)[1])
    yield name, body


def uses_vectors(body: list[str]) -> bool:
    return any(_VECTOR.search(instruction) for instruction in body)


def test_the_levels_use_their_own_registers(objects):
    """The check below would pass on anything if the patterns found nothing."""
    found = [("avx2", "%ymm"), ("avx512", "%zmm"), ("avx512_vnni", "vpdpbusd"), ("avx512_amx", "%tmm")]
    for level, register in found:
        own = [path for path in objects if selftest_program.level_of(path.name, LEVELS) == level]
        assert any(register in line for path in own for _, body in functions_of(path) for line in body), level


def test_only_the_levels_above_generic_use_vector_extensions(objects):
    program = selftest_program.build() / "kernel_selftest"
    plain = [
        (name, body) for name, body in functions_of(program) if selftest_program.level_of(name, LEVELS) in (None, "generic")
    ]
    assert len(plain) > 100
    assert [name for name, body in plain if uses_vectors(body)] == []


def test_a_level_uses_no_higher_one(objects):
    forbidden = {
        "avx2": f"%zmm|{_TILES}",
        "avx512": f"vpdpbusd|vdpbf16ps|{_TILES}",
        "avx512_vnni": f"vdpbf16ps|{_TILES}",
        "avx512_bf16": _TILES,
    }
    for path in objects:
        pattern = forbidden.get(selftest_program.level_of(path.name, LEVELS) or "")
        if pattern:
            wrong = [name for name, body in functions_of(path) if re.search(pattern, "\n".join(body))]
            assert wrong == [], path.name


def test_a_level_defines_nothing_outside_its_namespace(objects):
    """A function that two levels' files both define, as an inline one may be, is kept once: compiled for either level."""
    for path in objects:
        level = selftest_program.level_of(path.name, LEVELS)
        if level is None:
            continue
        defined = [line.split(" ", 2) for line in output_of("nm", "-C", "--defined-only", str(path))]
        shared = [name for _, kind, name in defined if kind in "TWVuB" and not name.startswith(f"quire::{level}::")]
        assert shared == [], path.name
