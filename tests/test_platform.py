"""Limits of the machine, read from fake /proc and /sys trees: cgroup version 1, version 2, hybrid, containers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from quire import platform

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """Writes files under a fake root: machine({"proc/meminfo": "..."}) returns the root."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


MEMINFO = {"proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {32 * 2**20} kB\n"}


def version_2(path="/app", **files):
    return {
        "proc/self/cgroup": f"0::{path}\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }


def test_without_cgroups_nothing_is_limited(machine):
    root = machine(MEMINFO)
    assert platform.cpu_quota(root) is None
    assert platform.cgroup_memory_limit(root) is None
    assert platform.total_memory_bytes(root) == 64 * GIB
    assert platform.available_memory_bytes(root) == 32 * GIB
    assert platform.cpu_count(root) == platform.affinity_count()


def test_hardware_threads_of_one_core_count_once(machine, monkeypatch):
    monkeypatch.setattr(platform.os, "sched_getaffinity", lambda pid: {0, 1, 4, 5}, raising=False)
    topology = {0: (0, 0), 1: (0, 1), 4: (0, 0), 5: (1, 0)}  # CPU: package, core
    files = {}
    for cpu, (package, core) in topology.items():
        folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
        files |= {f"{folder}/physical_package_id": f"{package}\n", f"{folder}/core_id": f"{core}\n"}
    root = machine(MEMINFO | files)
    assert platform.core_count(root) == 3
    assert platform.cpu_count(root) == 3
    (root / "sys/devices/system/cpu/cpu5/topology/core_id").unlink()
    assert platform.core_count(root) == 4


needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or os.cpu_count() < 2, reason="needs two CPUs, and a system that binds"
)


def bound_by_openmp(imports: str, **variables: str) -> list[str]:
    """What a process with these variables finds after its imports: CPUs it counts, what undo_binding says, CPUs it then has."""
    script = (
        f"import os; {imports}; from quire import platform; "
        "print(platform.affinity_count(), platform.undo_binding(), len(os.sched_getaffinity(0)))"
    )
    environ = {name: text for name, text in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, env=environ | variables, capture_output=True, text=True, check=True
    ).stdout.split()


@needs_affinity
def test_openmp_that_binds_threads_takes_no_cpus_away():
    cpus = str(platform.affinity_count())
    assert bound_by_openmp("import quire, torch", OMP_PROC_BIND="true") == [cpus, "None", cpus]
    assert bound_by_openmp("import quire, torch", OMP_PLACES="{0},{1}") == [cpus, "None", cpus]
    assert bound_by_openmp("import torch, quire") == [cpus, "None", cpus]


@needs_affinity
def test_torch_that_was_imported_first_has_bound_the_process():
    assert bound_by_openmp("import torch, quire", OMP_PROC_BIND="true") == ["1", "OMP_PROC_BIND", "1"]


def test_version_2_quota_and_limit(machine):
    root = machine(
        MEMINFO
        | version_2(
            **{
                "app/cpu.max": "150000 100000\n",
                "app/memory.max": f"{8 * GIB}\n",
                "app/memory.current": f"{3 * GIB}\n",
                "app/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            }
        )
    )
    assert platform.cpu_quota(root) == 1.5
    assert platform.cpu_count(root) == 1
    assert platform.cgroup_memory_limit(root) == 8 * GIB
    assert platform.available_memory_bytes(root) == 6 * GIB


def test_version_2_without_limits(machine):
    root = machine(MEMINFO | version_2(**{"app/cpu.max": "max 100000\n", "app/memory.max": "max\n"}))
    assert platform.cpu_quota(root) is None
    assert platform.cgroup_memory_limit(root) is None
    assert platform.available_memory_bytes(root) == 32 * GIB


def test_the_tightest_ancestor_counts(machine):
    files = {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000", "a/memory.max": f"{2 * GIB}"}
    files |= {"a/memory.current": f"{GIB}", "a/b/memory.max": f"{4 * GIB}", "a/b/memory.current": "0"}
    root = machine(MEMINFO | version_2("/a/b", **files))
    assert platform.cpu_quota(root) == 2.0
    assert platform.cgroup_memory_limit(root) == 2 * GIB
    assert platform.available_memory_bytes(root) == GIB


def test_a_container_sees_its_own_group_at_the_top(machine):
    """The path is the host's and does not exist here; the limits lie at the mount."""
    files = {"cpu.max": "400000 100000", "memory.max": f"{GIB}", "memory.current": "0"}
    root = machine(MEMINFO | version_2("/docker/0123", **files))
    assert platform.cpu_quota(root) == 4.0
    assert platform.cgroup_memory_limit(root) == GIB


def test_usage_above_the_limit_leaves_nothing(machine):
    files = {"app/memory.max": f"{GIB}", "app/memory.current": f"{2 * GIB}"}
    assert platform.available_memory_bytes(machine(MEMINFO | version_2(**files))) == 0


def version_1(cpu_mount="cpu,cpuacct"):
    return {
        "proc/self/cgroup": f"5:memory:/app\n4:{cpu_mount}:/app\n1:name=systemd:/\n0::/\n",
        "sys/fs/cgroup/unified/cgroup.procs": "",
    }


@pytest.mark.parametrize("cpu_mount", ["cpu,cpuacct", "cpu"])
def test_version_1_and_hybrid(machine, cpu_mount):
    memory, cpu = "sys/fs/cgroup/memory/app", f"sys/fs/cgroup/{cpu_mount}/app"
    root = machine(
        MEMINFO
        | version_1(cpu_mount)
        | {
            f"{cpu}/cpu.cfs_quota_us": "250000\n",
            f"{cpu}/cpu.cfs_period_us": "100000\n",
            f"{memory}/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{memory}/memory.usage_in_bytes": f"{3 * GIB}\n",
            f"{memory}/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )
    assert platform.cpu_quota(root) == 2.5
    assert platform.cgroup_memory_limit(root) == 4 * GIB
    assert platform.available_memory_bytes(root) == 2 * GIB


def test_version_1_without_limits(machine):
    unlimited = {
        "sys/fs/cgroup/cpu/app/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/app/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/app/memory.limit_in_bytes": "9223372036854771712\n",
    }
    root = machine(MEMINFO | version_1("cpu") | unlimited)
    assert platform.cpu_quota(root) is None
    assert platform.cgroup_memory_limit(root) is None


def test_cpu_model_and_flags(machine):
    root = machine(
        {"proc/cpuinfo": "processor : 0\nmodel name\t: Fast CPU\nflags\t\t: sse avx2\n\nprocessor : 1\n"}
    )
    assert platform.cpu_model(root) == "Fast CPU"
    assert platform.cpu_flags(root) == ["sse", "avx2"]


def test_a_machine_without_proc_answers_too(tmp_path):
    assert platform.total_memory_bytes(tmp_path) >= platform.available_memory_bytes(tmp_path) > 0
    assert platform.cpu_model(tmp_path)
    assert platform.cpu_flags(tmp_path) == []


def test_this_machine():
    assert 1 <= platform.cpu_count() <= platform.affinity_count()
    assert 0 < platform.available_memory_bytes() <= platform.total_memory_bytes()


def test_cache_sizes(machine):
    folder = "sys/devices/system/cpu/cpu0/cache"
    files = {}
    for index, (level, kind, size) in enumerate(
        [(1, "Data", "32K"), (1, "Instruction", "64K"), (2, "Unified", "1024K"), (3, "Unified", "32M")]
    ):
        files |= {f"{folder}/index{index}/level": f"{level}\n", f"{folder}/index{index}/type": f"{kind}\n"}
        files[f"{folder}/index{index}/size"] = f"{size}\n"
    root = machine(files)
    assert platform.cache_bytes(1, root) == 32 << 10
    assert platform.cache_bytes(2, root) == 1 << 20
    assert platform.cache_bytes(3, root) == 32 << 20
    assert platform.cache_bytes(4, root) is None
