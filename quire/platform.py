"""What this process may use of the machine: CPUs, memory and their cgroup limits (version 1, version 2, hybrid).

The one place that reads /proc and /sys for limits. `root` is a parameter so that tests can fake the files.
No torch and no GPU here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")
_UNLIMITED_V1 = 1 << 60  # version 1 writes "no limit" as 2^63 rounded down to a page
_BINDING_VARIABLES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_CPUS_AT_IMPORT = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
_TORCH_WAS_FIRST = "torch" in sys.modules


# ---------------------------------------------------------------- CPU


def cpu_count(root: Path = _ROOT) -> int:
    """Threads that this process can keep busy: physical cores it may run on, capped by the cgroup quota; at least 1.

    Two hardware threads of a core share its arithmetic units and its path to memory. A quota is rounded down: one thread too
    many stalls at every barrier, one too few costs a fraction of a CPU.
    """
    allowed = core_count(root)
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def affinity_count() -> int:
    """CPUs the scheduler may place this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(allowed_cpus())
    return os.cpu_count() or 1


def allowed_cpus() -> set[int]:
    """Numbers of the CPUs that this process may run on, where the system tells (`os.sched_getaffinity`).

    OpenMP that is told to bind its threads leaves its caller on one CPU as torch is imported; the caller's CPUs before that
    count then.
    """
    now = os.sched_getaffinity(0)
    return now | _CPUS_AT_IMPORT if binding_variable() else now


def binding_variable() -> str | None:
    """The environment variable that tells OpenMP to bind threads to CPUs, if there is one."""
    return next((name for name in _BINDING_VARIABLES if os.environ.get(name, "false").lower() != "false"), None)


def undo_binding() -> str | None:
    """Let the calling thread, and those that it starts, run on all allowed CPUs, whatever OpenMP was told.

    Returns the variable that told it where torch was imported before this package and one CPU is left: which others there were
    is not known then. Else None.
    """
    name = binding_variable()
    if name is None or not hasattr(os, "sched_setaffinity"):
        return None
    os.sched_setaffinity(0, allowed_cpus())
    return name if _TORCH_WAS_FIRST and affinity_count() == 1 else None


def core_count(root: Path = _ROOT) -> int:
    """Physical cores behind the CPUs that this process may run on; those CPUs where the system does not tell."""
    if not hasattr(os, "sched_getaffinity"):
        return affinity_count()
    cores = set()
    for cpu in allowed_cpus():
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        try:
            cores.add(((folder / "physical_package_id").read_text(), (folder / "core_id").read_text()))
        except OSError:
            return affinity_count()
    return len(cores)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPU bandwidth limit in CPUs (1.5 = one and a half), the tightest up the cgroup tree; None if unlimited."""
    quotas = [
        quota
        for folder in _cgroup_folders(root, "cpu")
        for quota in (_quota_v2(folder), _quota_v1(folder))
        if quota is not None
    ]
    return min(quotas, default=None)


def _quota_v2(folder: Path) -> float | None:
    words = _read(folder / "cpu.max").split()
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_v1(folder: Path) -> float | None:
    quota = _read_int(folder / "cpu.cfs_quota_us")
    period = _read_int(folder / "cpu.cfs_period_us")
    if quota is None or period is None or quota <= 0 or period <= 0:
        return None
    return quota / period


def cpu_model(root: Path = _ROOT) -> str:
    """The processor's name, or the machine type where /proc does not tell."""
    return _cpuinfo(root, "model name") or os.uname().machine


def cpu_flags(root: Path = _ROOT) -> list[str]:
    """Feature flags as the kernel names them; empty where /proc does not tell."""
    return (_cpuinfo(root, "flags") or _cpuinfo(root, "Features")).split()


def cache_bytes(level: int, root: Path = _ROOT) -> int | None:
    """Size of the first CPU's cache of that level (1 to 3; data or unified), or None where /sys does not tell."""
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(folder / "level").strip() == str(level) and _read(folder / "type").strip() != "Instruction":
            size = _read(folder / "size").strip()
            units = {"K": 1 << 10, "M": 1 << 20}
            if size[:-1].isdigit() and size[-1] in units:
                return int(size[:-1]) * units[size[-1]]
    return None


def _cpuinfo(root: Path, wanted: str) -> str:
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return value.strip()
    return ""


# ---------------------------------------------------------------- memory

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_THRESHOLD_BYTES = 128 * 1024
_MAX_ARENAS = 2


def give_freed_memory_back() -> None:
    """Have glibc return what is freed to the system, now and later; does nothing under another C library.

    glibc starts with these thresholds and raises them, up to 32 MiB, by what a program frees: after some large bodies a server
    keeps as much for ever. Each thread may also have a heap of its own.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return
    mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _THRESHOLD_BYTES)
    mallopt(_M_ARENA_MAX, _MAX_ARENAS)


def total_memory_bytes(root: Path = _ROOT) -> int:
    """Memory of the machine, whatever the cgroup allows."""
    return _meminfo(root, "MemTotal")


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Memory this process can still take: what the machine has free, capped by what the cgroup leaves."""
    machine = _meminfo(root, "MemAvailable")
    headroom = _cgroup_headroom(root)
    return machine if headroom is None else max(0, min(machine, headroom))


def cgroup_memory_limit(root: Path = _ROOT) -> int | None:
    """Memory limit in bytes, the tightest up the cgroup tree; None if unlimited."""
    limits = [_memory_limit(folder) for folder in _cgroup_folders(root, "memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _read_int(folder / name)
        if limit is not None:
            return limit if limit < _UNLIMITED_V1 else None
    return None


def _cgroup_headroom(root: Path) -> int | None:
    """Bytes left under the tightest limit, or None without one. Page cache that can be dropped counts as free."""
    headrooms = []
    for folder in _cgroup_folders(root, "memory"):
        limit, used = _memory_limit(folder), _memory_used(folder)
        if limit is not None and used is not None:
            headrooms.append(limit - used)
    return min(headrooms, default=None)


def _memory_used(folder: Path) -> int | None:
    for usage_file, cache_key in (
        ("memory.current", "inactive_file"),
        ("memory.usage_in_bytes", "total_inactive_file"),
    ):
        used = _read_int(folder / usage_file)
        if used is not None:
            return max(0, used - _stat_value(folder / "memory.stat", cache_key))
    return None


def _stat_value(path: Path, key: str) -> int:
    for line in _read(path).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == key:
            return int(words[1])
    return 0


def _meminfo(root: Path, key: str) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return _psutil_memory(key)


def _psutil_memory(key: str) -> int:
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total if key == "MemTotal" else memory.available)


# ---------------------------------------------------------------- cgroups


def _cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """This process's folder for `controller` and its ancestors, innermost first; limits hold on every level.

    Inside a container the path in /proc/self/cgroup is often the host's and absent here; the mount's top, which
    the walk ends at, is then the container's own group.
    """
    found = _cgroup_path(root, controller)
    if found is None:
        return
    mount, inner = found
    folder = mount / inner.lstrip("/")
    while True:
        if folder.is_dir():
            yield folder
        if folder == mount:
            return
        folder = folder.parent


def _cgroup_path(root: Path, controller: str) -> tuple[Path, str] | None:
    """(where the hierarchy that controls `controller` is mounted, our path in it); version 1 wins in a hybrid."""
    top = root / "sys/fs/cgroup"
    unified: str | None = None
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            mount = next((m for m in (top / controllers, top / controller) if m.is_dir()), None)
            return None if mount is None else (mount, path)
        if controllers == "":
            unified = path
    if unified is None or not (top / "cgroup.controllers").exists():
        return None
    return top, unified


def _read(path: Path) -> str:
    """The file's text, or "" where it does not exist or may not be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _read_int(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.lstrip("-").isdigit() else None
