"""`ServerArgs`: every option of the HTTP server with its default and help text. Options of the engine are
`EngineArgs`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from quire.config.options import add_flag, clean_value, option
from quire.log import FORMATS, LEVELS


@dataclass
class ServerArgs:
    """Options of `quire serve` beside the engine's. Raises ConfigError for a wrong value."""

    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0 is every interface.")
    port: int = option(8000, "Port to listen on; 0 picks a free one.", low=0, high=65535)
    grpc_port: int | None = option(
        None, "Port that also serves gRPC (quire/server/grpc/quire.proto); default: none.", low=0, high=65535
    )
    uds: str | None = option(None, "Listen on this Unix socket instead of a port.")
    root_path: str = option("", "Path prefix that a proxy in front of the server strips.")
    uvicorn_log_level: str = option(
        "info", "Level of the HTTP log.", choices=("critical", "error", "warning", "info", "debug", "trace")
    )
    disable_uvicorn_access_log: bool = option(False, "No line in the log for each request.")
    log_level: str | None = option(
        None, "Level of Quire's own log; default: QUIRE_LOG_LEVEL, else info.", choices=LEVELS
    )
    log_format: str | None = option(
        None, "text, or json: an object per line; default: QUIRE_LOG_FORMAT, else text.", choices=FORMATS
    )
    enable_log_requests: bool = option(False, "Log the prompt and the parameters of each request.")
    max_log_len: int | None = option(
        None, "With --enable-log-requests: most characters or tokens of a prompt in the log; default: all.", low=0
    )
    otlp_traces_endpoint: str | None = option(
        None, "Send traces to this OpenTelemetry collector, by OTLP over HTTP (http://localhost:4318); default: none."
    )
    api_server_count: int = option(
        1, "Front-end processes on the one port; each serves its own connections.", low=1, high=64, aliases=("-asc",)
    )
    shutdown_timeout: float = option(
        5.0, "Seconds that running requests get to finish after Ctrl-C or SIGTERM.", low=0
    )
    max_body_bytes: int = option(32 * 2**20, "Largest request body, bytes (32M).", low=1024)
    timeout_keep_alive: int = option(
        75,
        "Seconds after which an idle connection is closed. More than clients and proxies keep theirs for (httpx 5, load "
        "balancers 60): who sends on a connection as it closes gets an error.",
        low=1,
    )
    timeout_client: float = option(
        60.0,
        "Seconds after which a client that neither sends on its request nor reads on its response is cut off.",
        low=0,
        exclude_low=True,
    )
    max_connections: int | None = option(
        None, "Most open connections of a front end; default: what its limit of open files allows.", low=1
    )
    allowed_hosts: list[str] | None = option(
        None,
        "Names that clients may call the server by, beside localhost and IP addresses; *: any. Default: any, but none "
        "for a server without API keys on a loopback address.",
        many=True,
    )
    api_key: str | list[str] | None = option(
        None, "Keys, one of which requests must bring as a bearer token; also QUIRE_API_KEY.", many=True
    )
    api_key_file: str | None = option(
        None, "File of such keys, KEY or NAME:KEY a line, that is read again when it changes."
    )
    admin_api_key: str | list[str] | None = option(
        None,
        "Keys, one of which requests to /admin must bring; without one these routes are closed. Also QUIRE_ADMIN_API_KEY.",
        many=True,
    )
    ssl_keyfile: str | None = option(None, "File with the TLS key. The TLS files are read again when they change.")
    ssl_certfile: str | None = option(None, "File with the TLS certificate, and those between it and its root.")
    ssl_ca_certs: str | None = option(None, "File with the certificates that sign those of clients.")
    ssl_cert_reqs: int = option(
        0, "Certificates of clients: 0 are not asked for, 1 may be brought, 2 must be brought.", low=0, high=2
    )
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
    max_concurrent_requests: int | None = option(
        None, "Most requests that are served at a time, others are refused; default: no limit.", low=1
    )
    request_timeout: float | None = option(
        None,
        "Seconds that a request may take, after which it ends with an error (HTTP 504); clients may ask for less by the header "
        "X-Request-Timeout; default: no limit.",
        low=0,
        exclude_low=True,
    )
    share_prefix_cache_between_tenants: bool = option(
        False,
        "With several API keys: let requests reuse the cached prompts of other keys, whose presence their timing then shows.",
    )
    response_role: str = option("assistant", "Role of the messages that the server generates.")

    allowed_origins: list[str] | None = option(
        None, "Origins of web pages that may call the server (CORS); default: none. Also OLLAMA_ORIGINS.", many=True
    )

    # Several models
    models_dir: str | None = option(
        None, "Serve every checkpoint folder in this folder, each loaded when it is asked for; also QUIRE_MODELS."
    )
    models_memory: int | None = option(
        None,
        "With --models-dir: memory of all loaded models, weights and KV caches, bytes (8G); "
        "default: 80 % of what is free at the start.",
        low=1,
    )
    max_loaded_models: int | None = option(
        None, "With --models-dir: most models in memory; default: no limit.", low=1
    )
    keep_alive: str | None = option(
        None, "With --models-dir: how long an idle model stays loaded (300, 1h30m, -1: forever, 0); default: 5m."
    )
    models_wait: float = option(
        300.0,
        "Longest that a request waits for its model, for room in memory or for a reload in mode drain, seconds; then 503.",
        low=0,
    )

    # Limits of Text Generation Inference's API, with its defaults
    max_input_tokens: int | None = option(
        None, "Longest prompt on the routes of TGI and over gRPC, tokens; default: what the model allows.", low=1
    )
    max_best_of: int = option(2, "Most sequences for best_of on the routes of TGI.", low=1)
    max_stop_sequences: int = option(4, "Most stop sequences on the routes of TGI.", low=0)
    max_top_n_tokens: int = option(5, "Most likeliest tokens per position on the routes of TGI.", low=0)
    max_client_batch_size: int = option(32, "Most instances of one request to /vertex.", low=1)

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
