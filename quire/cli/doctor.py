"""`quire doctor`: what this machine offers, what was built, and which backend serves each op."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform as python_platform
from typing import Any

import quire
from quire import envs, platform

_SHOWN_FLAGS = ("avx2", "fma", "f16c", "avx_vnni", "avx512", "amx", "asimd", "sve", "i8mm", "bf16")
"""Prefixes of the kernel's CPU flags that matter to a kernel; shown where the extension cannot tell."""

_HELP = "show the machine, the build and the backends in use"


def add_parser(subparsers: Any) -> None:
    """Add `doctor` to the command line's subcommands."""
    parser = subparsers.add_parser("doctor", help=_HELP, description=_HELP[0].upper() + _HELP[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--bench", action="store_true", help="also measure what this machine can do at most (a few seconds)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns 1 if something that Quire cannot run without is broken."""
    report = collect()
    if args.bench and report["kernels"].get("built"):
        report["roofline"] = _roofline(report["cpu"]["threads"])
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 1 if "torch_error" in report["software"] else 0


# ---------------------------------------------------------------- collect


def collect() -> dict[str, Any]:
    """Everything the doctor knows, as plain values. Sizes in bytes."""
    software = _software()
    report: dict[str, Any] = {"software": software, "cpu": _cpu(), "memory": _memory()}
    report |= {"gpus": [], "kernels": {}, "ops": {}}
    if "torch_error" in software:
        return report
    report["gpus"] = _gpus()
    report["kernels"] = kernels = _kernels()
    report["cpu"]["level"], report["cpu"]["levels"] = kernels.pop("level"), kernels.pop("levels")
    report["cpu"]["features"] = kernels.pop("features") or report["cpu"]["features"]
    report["ops"] = {device: _backends(device) for device in (["cpu", "cuda"] if report["gpus"] else ["cpu"])}
    return report


def _software() -> dict[str, Any]:
    found = {
        "quire": quire.__version__,
        "python": python_platform.python_version(),
        "system": python_platform.platform(),
    }
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: one of its shared libraries
        return found | {"torch_error": str(error)}
    return found | {"torch": torch.__version__, "cuda": torch.version.cuda}


def _cpu() -> dict[str, Any]:
    import psutil

    flags = [flag for flag in platform.cpu_flags() if flag.startswith(_SHOWN_FLAGS)]
    return {
        "model": platform.cpu_model(),
        "features": flags,
        "physical_cores": psutil.cpu_count(logical=False),
        "visible_cpus": platform.affinity_count(),
        "cgroup_quota": platform.cpu_quota(),
        "threads": envs.NUM_THREADS.read() or platform.cpu_count(),
    }


def _memory() -> dict[str, Any]:
    return {
        "total": platform.total_memory_bytes(),
        "available": platform.available_memory_bytes(),
        "cgroup_limit": platform.cgroup_memory_limit(),
    }


def _gpus() -> list[dict[str, Any]]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append({"name": properties.name, "memory": properties.total_memory, "capability": capability})
    return found


def _kernels() -> dict[str, Any]:
    from quire.ops import cpu

    status = cpu.status()
    return {
        "built": status.built,
        "reason": status.reason,
        "level": status.level,
        "levels": list(status.levels),
        "features": [name for name, present in status.features.items() if present],
    }


def _backends(device: str) -> dict[str, str]:
    import torch

    from quire.ops import registry

    return dict(registry.table(torch.device(device)))


def _roofline(threads: int) -> list[dict[str, Any]]:
    """One entry for one thread and one for all; bytes and operations per second."""
    from quire.ops.cpu import roofline

    probe = roofline.Probe(threads)
    return [dataclasses.asdict(probe.measure(count)) for count in sorted({1, threads})]


# ---------------------------------------------------------------- render


def render(report: dict[str, Any]) -> str:
    """The report as aligned text, one section per topic."""
    sections = [
        ("Software", _software_rows(report["software"])),
        ("CPU", _cpu_rows(report["cpu"])),
        ("Memory", _memory_rows(report["memory"])),
        ("GPU", _gpu_rows(report["gpus"])),
        ("C++ kernels", _kernel_rows(report["kernels"])),
        ("Roofline", _roofline_rows(report.get("roofline", []))),
        *((f"Ops on {device}", list(backends.items())) for device, backends in report["ops"].items()),
    ]
    return "\n\n".join(_section(title, rows) for title, rows in sections if rows)


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    return "\n".join([title, *(f"  {name:<18} {value}" for name, value in rows)])


def _software_rows(software: dict[str, Any]) -> list[tuple[str, str]]:
    torch_row = software.get("torch") or f"cannot be imported: {software['torch_error']}"
    return [
        ("quire", software["quire"]),
        ("python", software["python"]),
        ("system", software["system"]),
        ("torch", torch_row),
    ]


def _cpu_rows(cpu: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("model", cpu["model"]),
        ("features", " ".join(cpu["features"]) or "unknown"),
        ("physical cores", _or_unknown(cpu["physical_cores"])),
        ("visible CPUs", str(cpu["visible_cpus"])),
        ("cgroup quota", "none" if cpu["cgroup_quota"] is None else f"{cpu['cgroup_quota']:g} CPUs"),
        ("threads", str(cpu["threads"])),
    ]
    if cpu.get("level"):
        rows.append(("instruction level", f"{cpu['level']} (available: {', '.join(cpu['levels'])})"))
    return rows


def _memory_rows(memory: dict[str, Any]) -> list[tuple[str, str]]:
    limit = memory["cgroup_limit"]
    return [
        ("total", _gib(memory["total"])),
        ("available", _gib(memory["available"])),
        ("cgroup limit", "none" if limit is None else _gib(limit)),
    ]


def _gpu_rows(gpus: list[dict[str, Any]]) -> list[tuple[str, str]]:
    if not gpus:
        return [("devices", "none")]
    return [
        (f"cuda:{index}", f"{gpu['name']}, {_gib(gpu['memory'])}, compute capability {gpu['capability']}")
        for index, gpu in enumerate(gpus)
    ]


def _kernel_rows(kernels: dict[str, Any]) -> list[tuple[str, str]]:
    if not kernels:
        return []
    return [("built", "yes" if kernels["built"] else f"no: {kernels['reason']}")]


_ROOFLINE_ROWS = {
    "read": ("memory read", "GB/s"),
    "cache_read": ("cache read", "GB/s"),
    "float32": ("float32", "GFLOP/s"),
    "int8": ("int8", "GOP/s"),
    "bfloat16": ("bfloat16", "GFLOP/s"),
}
"""Field of `Roofline`: its title, and the unit that a billion a second is called."""


def _roofline_rows(measured: list[dict[str, Any]]) -> list[tuple[str, str]]:
    rows = []
    for field, (title, unit) in _ROOFLINE_ROWS.items():
        values = [f"{peak[field] / 1e9:.1f}" for peak in measured if peak[field] is not None]
        if values:
            rows.append((title, f"{' / '.join(values)} {unit}"))
    threads = " / ".join(str(peak["threads"]) for peak in measured)
    return [("threads", threads), *rows] if rows else []


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)
