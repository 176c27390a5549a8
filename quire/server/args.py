"""`ServerArgs`: every option of the HTTP server with its default and help text. Options of the engine are
`EngineArgs`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from quire.config.options import add_flag, clean_value, option


@dataclass
class ServerArgs:
    """Options of `quire serve` beside the engine's. Raises ConfigError for a wrong value."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 is every interface.")
    port: int = option(8000, "Port to listen on; 0 picks a free one.", low=0, high=65535)
    uds: str | None = option(None, "Listen on this Unix socket instead of a port.")
    root_path: str = option("", "Path prefix that a proxy in front of the server strips.")
    uvicorn_log_level: str = option(
        "info", "Level of the HTTP log.", choices=("critical", "error", "warning", "info", "debug", "trace")
    )
    disable_uvicorn_access_log: bool = option(False, "No line in the log for each request.")
    shutdown_timeout: float = option(
        5.0, "Seconds that running requests get to finish after Ctrl-C or SIGTERM.", low=0
    )
    max_body_bytes: int = option(32 * 2**20, "Largest request body, bytes (32M).", low=1024)
    timeout_keep_alive: int = option(5, "Seconds after which an idle connection is closed.", low=1)
    api_key: str | list[str] | None = option(
        None, "Keys, one of which requests must bring as a bearer token; also QUIRE_API_KEY.", many=True
    )
    ssl_keyfile: str | None = option(None, "File with the TLS key.")
    ssl_certfile: str | None = option(None, "File with the TLS certificate.")
    strict: bool = option(
        False,
        "Refuse requests with fields that the server does not know, instead of naming them in a header.",
    )
    max_stored_responses: int = option(
        1024, "Responses of /v1/responses kept in memory, so that conversations can go on from them.", low=0
    )
    peers_report: str | None = option(
        None, "Report of `python -m benchmarks.peers` that the page at / shows."
    )
    response_role: str = option("assistant", "Role of the messages that the server generates.")

    def __post_init__(self) -> None:
        for field in fields(self):
            setattr(self, field.name, clean_value(field, getattr(self, field.name)))

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Add one flag per option; returns the parser."""
        group = parser.add_argument_group("server")
        for field in fields(ServerArgs):
            add_flag(group, field)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> ServerArgs:
        """The options in what an argument parser with `add_cli_args` returned."""
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls)})
