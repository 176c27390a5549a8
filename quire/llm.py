"""`LLM`: batch inference in one object. Prompts in, outputs out, in
order; the server's engine, in this process.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import Any

from quire.config.engine_args import EngineArgs
from quire.engine.beam_search import search_beams
from quire.engine.engine import LLMEngine
from quire.engine.inputs import PreparedRequest, Prompt
from quire.engine.interrupt import defer_interrupt
from quire.engine.metrics import Metric, snapshot
from quire.engine.progress import Progress
from quire.engine.prompt_lists import list_of_prompts
from quire.errors import InvalidRequestError, NotSupportedError, describe
from quire.images.chat import take_images
from quire.llm_vectors import VectorCalls
from quire.outputs import BeamSearchOutput, RequestOutput
from quire.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from quire.tokenizer import Tokenizer, render_chat

Messages = list[dict[str, Any]]
"""One conversation: dicts with `role` and `content`."""


class LLM(VectorCalls):
    """A loaded model for batch inference. Not thread-safe; for concurrent requests use `AsyncLLMEngine`."""

    def __init__(self, model: str | None = None, *, tokenizer: str | None = None, **engine_args: Any) -> None:
        """Load a model: a folder, a hub id, or none for the built-in one. Keywords are the fields of
        `EngineArgs`.

        Raises ConfigError for a wrong option, HubError, UnsupportedModelError or ModelLoadError for the
        model.
        """
        engine_args.setdefault("disable_log_stats", True)
        args = EngineArgs.from_kwargs(model=model, tokenizer=tokenizer, **engine_args)
        self._start(LLMEngine.from_engine_args(args, offline=True))

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> LLM:
        """Like the constructor, from ready-made options."""
        return cls.from_engine(LLMEngine.from_engine_args(args, offline=True))

    @classmethod
    def from_engine(cls, engine: LLMEngine) -> LLM:
        """An `LLM` over an engine that is loaded already, and that nobody else steps."""
        llm = cls.__new__(cls)
        llm._start(engine)
        return llm

    def _start(self, engine: LLMEngine) -> None:
        self.llm_engine = engine
        self._request_ids = itertools.count()
        self._arrived: dict[str, list[RequestOutput]] = {}
        """Outputs that a step gave to requests of another stream than the one that made the step."""

    # -- text ------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        use_tqdm: bool = True,
        stream: bool = False,
        priority: int | Sequence[int] | None = None,
        lora_request: Any = None,
    ) -> Any:
        """Complete prompts; returns `list[RequestOutput]` in the order of the prompts.

        A prompt is text, a list of token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`; one prompt
        alone is a batch of one. The last two may hold `"multi_modal_data": {"image": image}` with a
        PIL.Image.Image, or a list of them, for a model that reads images, and its image token once for each.
        `sampling_params` is one for all, or one per prompt; None takes the model's recommendation. With
        `stream=True` (or `stream` set in the parameters) returns an iterator of outputs as they grow instead;
        closing it aborts what is left. Raises InvalidRequestError before anything runs if any request is
        invalid.
        """
        _refuse_adapters(lora_request)
        batch = _batch_of_prompts(prompts, prompt_token_ids)
        params = self._params_per_prompt(sampling_params, len(batch))
        streams = stream or any(each.stream for each in params)
        kind = None if streams else RequestOutputKind.FINAL_ONLY
        requests = self._prepare(batch, params, _per_prompt("priority", priority, 0, len(batch)), kind=kind)
        return self._stream(requests) if streams else self._run(requests, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        stream: bool = False,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        lora_request: Any = None,
    ) -> Any:
        """Answer one conversation or a list of them, through the model's chat template (or the one given).

        For a model that reads images, content may be a list with parts `{"type": "image_url", "image_url":
        {"url": address}}` (data:, and file:// or http(s) where the options allow it) or `{"type": "image_pil",
        "image_pil": image}`. The rest is as in `generate`. Raises InvalidRequestError for messages that the
        template refuses and for images that cannot be read.
        """
        conversations = _batch_of_conversations(messages)
        _refuse_adapters(lora_request)
        tokenizer = self.get_tokenizer()
        prompts = []
        for conversation in conversations:
            bare, images = self._take_images(conversation)
            text = render_chat(
                tokenizer,
                bare,
                image_text=self._image_text(),
                chat_template=chat_template or self.llm_engine.config.model.chat_template,
                add_generation_prompt=add_generation_prompt and not continue_final_message,
                continue_final_message=continue_final_message,
                tools=tools,
                **(chat_template_kwargs or {}),
            )
            ids = tokenizer.encode(text, add_special_tokens=False)
            prompts.append(
                {"prompt": text, "prompt_token_ids": ids, **({"multi_modal_data": {"image": images}} if images else {})}
            )
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, stream=stream, priority=priority)

    def _image_text(self) -> str | None:
        """What stands for an image in the text of a prompt."""
        vision = self.llm_engine.config.model.hf.vision
        return None if vision is None else self.get_tokenizer().id_to_token(vision.image_token_id)

    def _take_images(self, messages: Messages) -> tuple[Messages, list[Any]]:
        """Messages without their images, and these, read."""
        config = self.llm_engine.config
        bare, sources = take_images(messages)
        if not sources:
            return bare, []
        if config.model.hf.vision is None:
            raise InvalidRequestError(f"{sources[0][1]}: this model reads no images", parameter=sources[0][1])
        from quire.images.reader import ImageReader  # Pillow, which text alone does not need

        reader = ImageReader(config.model.hf.vision, config.media)
        reader.check_count(len(sources), self.llm_engine.max_model_len)
        return bare, [reader.read(source, where) for source, where in sources]

    def beam_search(
        self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams, *, use_tqdm: bool = False
    ) -> list[BeamSearchOutput]:
        """The likeliest continuations of each prompt, best first.

        A beam's score is its logprob sum divided by its length (prompt included, end-of-sequence not) to the
        power of `length_penalty`. Raises InvalidRequestError.
        """
        engine = self.llm_engine
        default = engine.default_sampling_params()
        starts = self._prepare(_batch_of_prompts(prompts, None), default)
        if any(start.children[0].images for start in starts):
            raise NotSupportedError("not supported yet: beam search with images", parameter="multi_modal_data")

        def run(batch: list[list[int]], step_params: SamplingParams) -> list[RequestOutput]:
            return self._run(self._prepare(batch, step_params, limit_logprobs=False), use_tqdm)

        return search_beams(
            [request.prompt_token_ids for request in starts],
            params,
            run,
            eos_token_ids=engine.eos_token_ids,
            max_model_len=engine.max_model_len,
            tokenizer=engine.tokenizer,
        )

    # -- the engine ------------------------------------------------------------------------------------------

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises InvalidRequestError with skip_tokenizer_init."""
        return self.llm_engine.get_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling parameters that the model recommends; a fresh object."""
        return self.llm_engine.default_sampling_params()

    def reset_prefix_cache(self) -> bool:
        """Forget cached prompts; False, changing nothing, while a stream is open."""
        return self.llm_engine.reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """The engine's numbers now."""
        return snapshot(self.llm_engine.stats())

    def shutdown(self) -> None:
        """Abort open streams and release the model."""
        self.llm_engine.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    # -- running ---------------------------------------------------------------------------------------------

    def _params_per_prompt(
        self, params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
    ) -> list[SamplingParams]:
        default = self.get_default_sampling_params() if params is None else None
        per_prompt = _per_prompt("sampling_params", params, default, num_prompts)
        for each in per_prompt:
            if not isinstance(each, SamplingParams):
                message = f"sampling_params must be SamplingParams or a list of them, got {describe(each)}"
                raise InvalidRequestError(message, parameter="sampling_params", value=each)
        return per_prompt

    def _prepare(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | list[SamplingParams],
        priorities: list[int] | None = None,
        *,
        kind: RequestOutputKind | None = None,
        limit_logprobs: bool = True,
    ) -> list[PreparedRequest]:
        """Check all requests; the user's parameters are copied, never changed."""
        per_prompt = [params] * len(prompts) if isinstance(params, SamplingParams) else params
        requests = []
        for index, (prompt, own) in enumerate(zip(prompts, per_prompt, strict=True)):
            if kind is not None and isinstance(own, SamplingParams):
                own = own.clone(output_kind=kind)
            requests.append(
                self.llm_engine.prepare(
                    str(next(self._request_ids)),
                    prompt,
                    own,
                    priority=priorities[index] if priorities else 0,
                    limit_logprobs=limit_logprobs,
                )
            )
        return requests

    def _step(self) -> None:
        """One step, never torn apart by Ctrl-C; its outputs wait for those who asked."""
        with defer_interrupt():
            for output in self.llm_engine.step():
                self._arrived.setdefault(output.request_id, []).append(output)

    def _stream(self, requests: list[PreparedRequest]) -> Generator[RequestOutput, None, None]:
        """Start requests and yield their outputs as they come; abort what is left when closed."""
        live = dict.fromkeys(request.request_id for request in requests)
        try:
            for request in requests:
                self.llm_engine.submit(request)
            while live:
                if not any(request_id in self._arrived for request_id in live):
                    self._step()
                for request_id in list(live):
                    for output in self._arrived.pop(request_id, ()):
                        if output.finished:
                            del live[request_id]
                        yield output
        finally:
            self.llm_engine.abort_request(list(live))
            for request in requests:
                self._arrived.pop(request.request_id, None)

    def _run(self, requests: list[PreparedRequest], use_tqdm: bool) -> list[RequestOutput]:
        final: dict[str, RequestOutput] = {}
        stream = self._stream(requests)
        with Progress(len(requests), enabled=use_tqdm) as progress, contextlib.closing(stream):
            for output in stream:
                if output.finished:
                    final[output.request_id] = output
                    progress.add(output)
        return [final[request.request_id] for request in requests]


def _refuse_adapters(lora_request: Any) -> None:
    if lora_request is not None:
        raise NotSupportedError("not supported yet: lora_request", parameter="lora_request", value=lora_request)


def _batch_of_prompts(
    prompts: Any, prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None
) -> list[Prompt]:
    """A list of prompts, from one prompt or many, by position or by `prompt_token_ids`."""
    if (prompts is None) == (prompt_token_ids is None):
        raise InvalidRequestError(
            "give either prompts or prompt_token_ids", parameter="prompts", value=prompts
        )
    return list_of_prompts(prompts if prompts is not None else prompt_token_ids, "prompts")


def _batch_of_conversations(messages: Any) -> list[Messages]:
    """A list of conversations, from one or many."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise InvalidRequestError(
            f"messages must be a list of messages or of conversations, got {describe(messages)}",
            parameter="messages",
            value=messages,
        )
    return [list(messages)] if messages and isinstance(messages[0], dict) else list(messages)


def _per_prompt(name: str, values: Any, default: Any, num_prompts: int) -> list[Any]:
    """One value for each prompt."""
    if values is None:
        return [default] * num_prompts
    if not isinstance(values, list | tuple):
        return [values] * num_prompts
    if len(values) != num_prompts:
        message = f"{name} must be one value or one per prompt: got {len(values)} for {num_prompts} prompts"
        raise InvalidRequestError(message, parameter=name)
    return list(values)
