"""`quire pull MODEL`: a model from the Hugging Face hub, through the running server or, where none runs, by itself."""

from __future__ import annotations

import argparse
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from quire import envs
from quire.cli.library.client import UnreachableError, add_host_argument, server_of
from quire.cli.library.text import size
from quire.errors import ConfigError

_DEFAULT_DIR = "~/.quire/models"
_BAR_WIDTH = 24

Event = dict[str, Any]


def add_parser(subparsers: Any) -> None:
    """Add `pull` to the commands."""
    parser = subparsers.add_parser(
        "pull",
        help="download a model from the Hugging Face hub",
        description="Download a model from the Hugging Face hub into the folder of the running server. Where no server "
        f"runs, or with --models-dir, into that folder: --models-dir, QUIRE_MODELS, OLLAMA_MODELS or {_DEFAULT_DIR}.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="owner/name, with :revision for another branch, tag or commit, or with the quantization of a GGUF file "
        "(:Q4_K_M); or owner/name/file.gguf",
    )
    parser.add_argument("--models-dir", metavar="DIR", help="download into this folder, without a server")
    add_host_argument(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Download and show how far it is."""
    if args.models_dir is None:
        try:
            _show(server_of(args).stream("/api/pull", model=args.model))
            return 0
        except UnreachableError:
            if args.host or envs.host():
                raise  # a server was named, so that is where the model should go
    root = Path(args.models_dir or envs.models_dir() or _DEFAULT_DIR).expanduser()
    _show(_pull_into(root, args.model))
    print(f"{args.model} is in {root}: quire serve --models-dir {root}")
    return 0


def _pull_into(root: Path, name: str) -> Iterator[Event]:
    from quire.loader.pull import Pull, pull
    from quire.server.models_dir import ModelsDir, check_name

    check_name(name)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"models_dir must be a folder, but {root} cannot be made: {error.strerror}") from None
    with ModelsDir(root).claim(name) as (target, draft):
        yield from _events_of(lambda report: pull(Pull(name, str(target), str(draft)), report))


def _events_of(work: Callable[[Callable[[Event], None]], None]) -> Iterator[Event]:
    """What `work` reports, as it comes; what it raises is raised here."""
    events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

    def target() -> None:
        try:
            work(events.put)
        except BaseException as error:
            events.put(error)
        else:
            events.put(None)

    threading.Thread(target=target, daemon=True).start()
    while (event := events.get()) is not None:
        if isinstance(event, BaseException):
            raise event
        yield event


def _show(events: Iterable[Event]) -> None:
    """A bar for each file on a terminal, elsewhere a line for each step."""
    is_terminal, last = sys.stdout.isatty(), ""
    for event in events:
        status = event["status"]
        if is_terminal and "total" in event:
            print(f"\r{_bar(event)}\033[K", end="" if event.get("completed", 0) < event["total"] else "\n", flush=True)
        elif status != last:
            total = f" ({size(event['total'])})" if "total" in event else ""
            print(status + total, flush=True)
        last = status


def _bar(event: Event) -> str:
    total, completed = event["total"], event.get("completed", 0)
    filled = _BAR_WIDTH * completed // total if total else _BAR_WIDTH
    bar = "█" * filled + " " * (_BAR_WIDTH - filled)
    return f"{event['status']:<22} ▕{bar}▏ {size(completed)} / {size(total)}"
