"""What the page's comparison shows: the report of a `python -m benchmarks.peers` run, without its raw measurements.

`--peers-report` names one; else `peers-report/report.json` in the working directory, where the benchmark puts it; else
`comparison.json` beside this file, the runs of docs/performance-log.md.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from quire.errors import NotFoundError

DEFAULT_PLACE = Path("peers-report") / "report.json"
_BUILT_IN = Path(__file__).parent / "comparison.json"
_MAX_BYTES = 16 * 2**20


class Peer(msgspec.Struct):
    """An engine that was measured."""

    title: str
    version: str = ""
    formats: dict[str, str] = {}
    """Precision -> what this engine calls it."""


class Row(msgspec.Struct):
    """One figure of one workload in one precision."""

    shape: str
    precision: str
    workload: str
    figure: str
    values: dict[str, list[float]]
    """Engine -> a value per round."""


class Run(msgspec.Struct):
    """One run: everything was measured on one machine, interleaved."""

    date: str
    machine: dict[str, str]
    threads: int
    peers: dict[str, Peer]
    rows: list[Row]
    scale: float = 1.0
    """Generated tokens were divided by this."""


class Comparison(msgspec.Struct):
    """What the page gets."""

    source: str
    """`built-in`, or the name of the file."""
    runs: list[Run]


def read_comparison(given: str | None) -> Comparison:
    """The comparison to show; `given` is a file that the operator named.

    Raises NotFoundError for a file that is not there or is not a report.
    """
    if given is not None:
        return Comparison(Path(given).name, [_read_report(Path(given))])
    if DEFAULT_PLACE.is_file():
        return Comparison(str(DEFAULT_PLACE), [_read_report(DEFAULT_PLACE)])
    return Comparison("built-in", msgspec.json.decode(_BUILT_IN.read_bytes(), type=list[Run]))


def _read_report(path: Path) -> Run:
    rule = "peers_report must be a report.json of `python -m benchmarks.peers`"
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise NotFoundError(f"{rule} of at most {_MAX_BYTES} bytes, got {path.name}", parameter="peers_report")
        return msgspec.json.decode(path.read_bytes(), type=Run)
    except OSError as error:
        raise NotFoundError(f"{rule}, got {path.name}: {error.strerror}", parameter="peers_report") from None
    except msgspec.DecodeError as error:
        raise NotFoundError(f"{rule}, got {path.name}: {error}", parameter="peers_report") from None
