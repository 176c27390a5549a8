"""`serve_openai_api`: start the HTTP server from Python."""

from __future__ import annotations

from typing import Any


def serve_openai_api(
    model: str | None = None, host: str = "127.0.0.1", port: int = 8000, **options: Any
) -> None:
    """Serve a model until Ctrl-C; `options` are fields of ServerArgs or EngineArgs. Raises ConfigError or
    ModelLoadError.
    """
    from dataclasses import fields

    from quire.config.engine_args import EngineArgs
    from quire.server.args import ServerArgs
    from quire.server.run import run_server

    of_server = {field.name for field in fields(ServerArgs)}
    server_options = {name: value for name, value in options.items() if name in of_server}
    engine_options = {name: value for name, value in options.items() if name not in of_server}
    run_server(
        EngineArgs.from_kwargs(model=model, **engine_options),
        ServerArgs(host=host, port=port, **server_options),
    )
