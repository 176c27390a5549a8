"""What llama.cpp's clients ask about the server and the model, and the routes that are refused for now."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import BusyError, NotSupportedError
from quire.sampling_params import SamplingParams
from quire.server.body import read_body
from quire.server.context import ServerContext
from quire.server.llamacpp.params import DEFAULTS, generation_settings
from quire.server.llamacpp.schemas import CompletionRequest, MessagesRequest
from quire.server.models import ServedModel
from quire.server.prompts import check_messages, check_template_variables, count_tokens, render_text
from quire.server.replies import fingerprint, json_response


async def show_props(context: ServerContext, request: Request) -> Response:
    """The model's defaults and names, and how many requests run at once at most."""
    model = await context.lease(request)
    config, special = model.config, _special_tokens(model)
    params = SamplingParams(**(DEFAULTS | dict(config.model.default_sampling_params)))
    template = _chat_template(model)
    return json_response(
        {
            "default_generation_settings": {
                "n_ctx": model.max_model_len,
                "params": generation_settings(CompletionRequest(), params),
            },
            "total_slots": config.scheduler.max_num_seqs,
            "model_alias": model.name,
            "model_path": config.model.model,
            "modalities": {"vision": False, "audio": False},
            "chat_template": template,
            "chat_template_caps": {},
            "bos_token": special.get("bos_token", ""),
            "eos_token": special.get("eos_token", ""),
            "build_info": fingerprint(),
            "is_sleeping": False,
        }
    )


def _special_tokens(model: ServedModel) -> dict[str, str]:
    tokenizer = model.engine.tokenizer
    return {} if tokenizer is None else tokenizer.special_tokens


def _chat_template(model: ServedModel) -> str:
    """The template that renders messages; empty where there is none."""
    tokenizer, given = model.engine.tokenizer, model.config.model.chat_template
    named = {} if tokenizer is None else tokenizer.chat_templates
    template: str = named.get(given, given) if given else named.get("default", "")
    return template


async def show_slots(context: ServerContext, request: Request) -> Response:
    """As many slots as requests can run at once, the first ones busy; a request holds none for good.

    `?fail_on_no_slot=1` asks for 503 where no slot is free.
    """
    model = await context.lease(request)
    num_slots = model.config.scheduler.max_num_seqs
    num_busy = min(num_slots, model.engine.stats().num_running)
    if num_busy == num_slots and request.query_params.get("fail_on_no_slot"):
        raise BusyError(f"All {num_slots} slots are busy")
    return json_response([_slot(index, index < num_busy, model.max_model_len) for index in range(num_slots)])


def _slot(index: int, is_busy: bool, num_ctx: int) -> dict[str, Any]:
    return {"id": index, "id_task": -1, "n_ctx": num_ctx, "speculative": False, "is_processing": is_busy}


async def list_lora_adapters(context: ServerContext, request: Request) -> Response:
    """No adapters: they are not supported yet."""
    return json_response([])


async def apply_template(context: ServerContext, request: Request) -> Response:
    """Messages as the text that the model would see."""
    body = await read_body(request, MessagesRequest, context.args.max_body_bytes)
    model = await context.lease(request)
    messages, variables = _checked(body)
    return json_response({"prompt": await render_text(model, messages, variables=variables)})


async def count_input_tokens(context: ServerContext, request: Request) -> Response:
    """How many tokens the messages of a chat completion have."""
    body = await read_body(request, MessagesRequest, context.args.max_body_bytes)
    model = await context.lease(request, body.model)
    messages, variables = _checked(body)
    count = await count_tokens(model, messages, variables=variables)
    return json_response({"object": "response.input_tokens", "input_tokens": count})


def _checked(body: MessagesRequest) -> tuple[Any, dict[str, Any]]:
    if body.tools:
        raise NotSupportedError("tools is not supported yet", parameter="tools")
    return check_messages(body.messages), check_template_variables(body.chat_template_kwargs)


def refuse(what: str) -> Any:
    """A handler that answers 501 not_supported_error."""

    async def handler(context: ServerContext, request: Request) -> Response:
        raise HTTPException(501, f"{what} is not supported by this server")

    handler.__doc__ = f"Always 501: {what} is not supported."
    return handler
