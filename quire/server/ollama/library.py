"""What there is and what is loaded: `/api/tags`, `/api/show`, `/api/ps`, `/api/version`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import quire
from quire.config.hf import generation_defaults
from quire.errors import ConfigError, ModelLoadError
from quire.loader.configuration import gguf_at
from quire.models import ModelRegistry
from quire.server.checkpoint_facts import CheckpointFacts, read_facts
from quire.server.context import ServerContext
from quire.server.durations import rfc3339
from quire.server.models import ModelCard
from quire.server.models_dir import full_name
from quire.server.ollama.checks import check_known, read_request
from quire.server.ollama.schemas import ShowRequest
from quire.server.replies import json_response
from quire.tokenizer.settings import read_settings

_SPOKEN_VERSION = "0.12.6"
"""The version of Ollama whose API this is. Clients compare it before they use newer fields."""
_NEVER = datetime.max.replace(tzinfo=UTC).timestamp() - 1
_OPTION_NAMES = {"repetition_penalty": "repeat_penalty", "max_tokens": "num_predict"}
_MAX_LICENSE_CHARS = 200_000


async def show_version(context: ServerContext, request: Request) -> Response:
    """Ollama's version that clients expect, and Quire's own."""
    return json_response({"version": _SPOKEN_VERSION, "quire": quire.__version__})


async def list_models(context: ServerContext, request: Request) -> Response:
    """Every model, loaded or not, the latest change first."""
    names = context.models.names()
    entries = await asyncio.to_thread(lambda: [_entry(name, context.models.card(name)) for name in names])
    entries.sort(key=lambda entry: entry["modified_at"], reverse=True)
    return json_response({"models": entries})


async def list_running(context: ServerContext, request: Request) -> Response:
    """The models in memory."""
    return json_response({"models": [_running(context, model.name) for model in context.models.loaded()]})


def _running(context: ServerContext, name: str) -> dict[str, Any]:
    card, residency = context.models.card(name), context.models.residency(name)
    entry = _entry(name, card)
    del entry["modified_at"], entry["capabilities"]
    size = entry["size"] if residency.num_bytes is None else residency.num_bytes
    return entry | {
        "size": size,
        "size_vram": 0,
        "expires_at": rfc3339(_NEVER if residency.expires_at is None else residency.expires_at),
        "context_length": card.max_model_len,
    }


def _entry(name: str, card: ModelCard) -> dict[str, Any]:
    facts = read_facts(card.folder)
    return {
        "name": full_name(name),
        "model": full_name(name),
        "modified_at": rfc3339(facts.modified_at),
        "size": facts.num_bytes,
        "digest": facts.digest,
        "details": _details(facts, Path(card.folder)),
        "capabilities": _capabilities(facts, Path(card.folder)),
    }


def _capabilities(facts: CheckpointFacts, folder: Path) -> list[str]:
    """What a server does with the checkpoint unless it is told otherwise; see `find_pooling`."""
    names = facts.config.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    is_encoder, is_headless = ModelRegistry.is_encoder(architecture), ModelRegistry.is_headless(architecture)
    gives_vectors = is_encoder or is_headless or (folder / "modules.json").exists()
    if gives_vectors:
        return ["embedding"]
    return ["completion", "vision"] if "vision_config" in facts.config else ["completion"]


def _details(facts: CheckpointFacts, folder: Path) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "safetensors" if gguf_at(folder) is None else "gguf",
        "family": facts.family,
        "families": [facts.family],
        "parameter_size": _human_count(facts.num_parameters),
        "quantization_level": facts.dtype,
    }


def _human_count(number: int) -> str:
    """7615616512 -> 7.6B, 494032768 -> 494.03M."""
    if number >= 10**9:
        return f"{number / 10**9:.1f}B"
    unit, letter = (10**6, "M") if number >= 10**6 else (10**3, "K")
    return f"{number / unit:.2f}{letter}"


async def show(context: ServerContext, request: Request) -> Response:
    """One model in full."""
    _, name = await read_request(context, request, ShowRequest)
    card = check_known(context, name)
    return json_response(await asyncio.to_thread(_describe, card))


def _describe(card: ModelCard) -> dict[str, Any]:
    folder, facts = Path(card.folder), read_facts(card.folder)
    template, parameters = _template(folder), _parameters(folder)
    body = {
        "modelfile": _modelfile(card.name, template, parameters),
        "parameters": "\n".join(f"{name:<30} {value}" for name, value in parameters.items()),
        "template": template,
        "details": _details(facts, folder),
        "model_info": _model_info(facts),
        "capabilities": _capabilities(facts, folder),
        "modified_at": rfc3339(facts.modified_at),
    }
    text = _license(folder)
    return body | {"license": text} if text else body


def _model_info(facts: CheckpointFacts) -> dict[str, Any]:
    """Ollama's names, which are those of GGUF files."""
    family = facts.family
    shape = {
        "context_length": facts.number("max_position_embeddings", "n_positions", "max_sequence_length"),
        "embedding_length": facts.number("hidden_size", "n_embd", "d_model"),
        "block_count": facts.number("num_hidden_layers", "n_layer", "num_layers"),
        "feed_forward_length": facts.number("intermediate_size", "n_inner"),
        "attention.head_count": facts.number("num_attention_heads", "n_head", "num_heads"),
        "attention.head_count_kv": facts.number("num_key_value_heads", "num_attention_heads", "n_head"),
        "vocab_size": facts.number("vocab_size"),
    }
    general = {"general.architecture": family, "general.parameter_count": facts.num_parameters}
    return general | {f"{family}.{name}": value for name, value in shape.items() if value is not None}


def _template(folder: Path) -> str:
    """The chat template (Jinja), empty if there is none."""
    try:
        templates = _chat_templates(folder)
    except (ConfigError, ModelLoadError, OSError, ValueError):
        return ""
    return templates.get("default") or next(iter(templates.values()), "")


def _chat_templates(folder: Path) -> dict[str, str]:
    file = gguf_at(folder)
    if file is None:
        return read_settings(folder).chat_templates
    from quire.tokenizer.gguf import gguf_chat_templates

    return gguf_chat_templates(file)


def _parameters(folder: Path) -> dict[str, Any]:
    """The checkpoint's advice on sampling, by Ollama's names of the options."""
    try:
        defaults = generation_defaults(folder)
    except (ModelLoadError, OSError):
        return {}
    return {_OPTION_NAMES.get(name, name): value for name, value in defaults.items()}


def _modelfile(name: str, template: str, parameters: dict[str, Any]) -> str:
    lines = [f"FROM {full_name(name)}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER {option} {value}" for option, value in parameters.items()]
    return "\n".join(lines) + "\n"


def _license(folder: Path) -> str:
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        try:
            return (folder / name).read_text(encoding="utf-8", errors="replace")[:_MAX_LICENSE_CHARS]
        except OSError:
            continue
    return ""
