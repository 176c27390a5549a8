"""Every kernel at every instruction-set level: natively, on emulated processors with less, and on 64-bit Arm.

The program under test, csrc/cpu/selftest, compares all levels of one processor bit for bit; here the processors are compared.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from quire.ops import cpu
from tests.isa import selftest_program

pytestmark = pytest.mark.slow

_IS_X86 = platform.machine() in ("x86_64", "AMD64")
only_x86 = pytest.mark.skipif(not _IS_X86, reason="emulates x86-64 on x86-64")


@pytest.fixture(scope="module")
def native():
    selftest_program.need("cmake", "ninja", "c++")
    return selftest_program.run()


def test_every_level_of_this_processor(native):
    assert native.levels[0] == "generic"
    assert native.levels == list(cpu.status().levels) or not cpu.status().built
    assert len(native.hashes) > 20


@only_x86
def test_amx_is_emulated_where_the_processor_lacks_it(native):
    """On a processor without AMX the program carries out the tile instructions of the compiled kernels itself."""
    compiled = any(selftest_program.level_of(path.name, {"avx512_amx"}) for path in selftest_program.objects())
    if not compiled or "avx512_bf16" not in native.levels:
        pytest.skip("needs a compiler that knows AMX and a processor with AVX-512-BF16")
    assert ("avx512_amx" in native.levels) != (native.emulated == ["avx512_amx"])
    assert sum(case.startswith("tiles bfloat16") for case in native.hashes) >= 5


@only_x86
@pytest.mark.parametrize(
    "model, levels",
    [("qemu64", ["generic"]), ("Nehalem", ["generic"]), ("Haswell", ["generic", "avx2"])],
)
def test_an_emulated_processor_gives_the_same_bits(native, model, levels):
    """An illegal instruction would end the program with a signal."""
    selftest_program.need("qemu-x86_64")
    emulated = selftest_program.run("qemu-x86_64", "-cpu", model)
    assert emulated.levels == levels
    assert emulated.hashes == native.hashes


@only_x86
def test_64_bit_arm_gives_the_same_bits(native):
    selftest_program.need("aarch64-linux-gnu-g++", "qemu-aarch64")
    emulated = selftest_program.run("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", architecture="aarch64")
    assert emulated.levels == ["generic", "neon"]
    assert emulated.hashes == native.hashes


# ---------------------------------------------------------------- the built extension

_needs_extension = pytest.mark.skipif(not cpu.status().built, reason="no C++ kernels")


@_needs_extension
@only_x86
@pytest.mark.parametrize("model, levels", [("Nehalem", "generic"), ("Haswell", "generic avx2")])
def test_python_loads_the_extension_on_an_emulated_processor(model, levels):
    """Without torch, whose own code has instructions of its own."""
    selftest_program.need("qemu-x86_64")
    extension, _ = cpu.load()
    script = selftest_program.REPOSITORY / "tests" / "isa" / "extension_alone.py"
    command = ["qemu-x86_64", "-cpu", model, os.path.realpath(sys.executable), "-I", str(script), extension.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.split("\n")[:2] == [levels, "ok"], done.stdout + done.stderr[-2000:]


# ---------------------------------------------------------------- the whole engine

_RUN = [sys.executable, "-m", "quire", "run", "--max-tokens", "8", "--temperature", "0"]
_QUESTION = [*_RUN, "What is the capital of France?"]


def ask(level: str, *emulator: str) -> str:
    environment = os.environ | {"QUIRE_CPU_ISA": level}
    command = [*emulator, *_QUESTION]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@_needs_extension
def test_folio_answers_the_same_at_every_level():
    answers = {level: ask(level) for level in cpu.status().levels}
    assert "Paris" in answers["generic"]
    assert len(set(answers.values())) == 1, answers


@_needs_extension
@only_x86
def test_folio_answers_without_avx512():
    """torch included: it chooses by cpuid too."""
    selftest_program.need("qemu-x86_64")
    assert ask("avx2", "qemu-x86_64", "-cpu", "Haswell") == ask("avx2")
