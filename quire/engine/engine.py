"""`LLMEngine`: the engine in this thread. Add requests, call `step()`, get outputs; `LLM` is made of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from quire.config.engine_args import EngineArgs
from quire.config.types import EngineConfig
from quire.engine.engine_core import EngineCore
from quire.engine.inputs import InputProcessor, PreparedRequest, Prompt
from quire.engine.outputs import OutputProcessor
from quire.engine.stats import EngineStats, StatsLogger
from quire.engine.text import load_text_side
from quire.errors import EngineDeadError, InvalidRequestError
from quire.log import get_logger
from quire.outputs import RequestOutput
from quire.sampling_params import SamplingParams
from quire.tokenizer import Tokenizer

_log = get_logger(__name__)


class LLMEngine:
    """Synchronous engine over one model. Not thread-safe."""

    def __init__(self, config: EngineConfig, core: EngineCore | None = None) -> None:
        """Load tokenizer and model. Raises ConfigError or ModelLoadError."""
        self.config = config
        self.tokenizer = load_text_side(config)
        self.core = EngineCore(config) if core is None else core
        self.max_model_len = self.core.ready.max_model_len
        self._inputs = InputProcessor(config.model, self.tokenizer, self.max_model_len, media=config.media)
        self._outputs = OutputProcessor(self.tokenizer)
        self._stats_logger = StatsLogger(_log, enabled=not config.disable_log_stats)
        self._is_shut_down = False

    @classmethod
    def from_engine_args(cls, args: EngineArgs, *, offline: bool = False) -> LLMEngine:
        """Resolve the options and load the model; `offline` takes the defaults of batch jobs."""
        return cls(args.create_engine_config(offline=offline))

    # -- requests --------------------------------------------------------------------------------------------

    def prepare(
        self, request_id: str, prompt: Prompt, params: SamplingParams | None = None, **options: Any
    ) -> PreparedRequest:
        """Check a request without starting it; see `InputProcessor.prepare`. Raises InvalidRequestError."""
        return self._inputs.prepare(request_id, prompt, params, **options)

    def submit(self, request: PreparedRequest) -> None:
        """Start a prepared request. Raises InvalidRequestError if its id is in use, EngineDeadError after
        `shutdown`.
        """
        if self._is_shut_down:
            raise EngineDeadError("the engine was shut down; make a new one")
        if request.params.logits_processors:
            _check_logits_processors(request.params.logits_processors)
        self._outputs.add(request)
        for child in request.children:
            self.core.add(child)

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
    ) -> str:
        """Check and start a request; returns its id. Raises InvalidRequestError."""
        self.submit(self.prepare(request_id, prompt, params, priority=priority, cache_salt=cache_salt))
        return request_id

    def abort_request(self, request_id: str | Iterable[str]) -> list[RequestOutput]:
        """End requests now; unknown ids are ignored. Returns the last output of each that lived."""
        request_ids = [request_id] if isinstance(request_id, str) else list(request_id)
        last: list[RequestOutput] = []
        for each in request_ids:
            state, child_ids = self._outputs.abort(each)
            self.core.abort(child_ids)
            last += [] if state is None else [state.output()]
        return last

    def has_unfinished_requests(self) -> bool:
        """Whether `step` still has outputs to give."""
        return len(self._outputs) > 0

    def get_num_unfinished_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._outputs)

    # -- the step --------------------------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """One step of the core; the outputs of every request that it changed. Raises EngineDeadError."""
        processed = self._outputs.process(self.core.step())
        self.core.abort(processed.aborts)
        if self._stats_logger.enabled:
            self._stats_logger.observe(self.core.stats())
        return processed.outputs

    # -- the rest --------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """A snapshot of the engine's numbers."""
        return self.core.stats()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InvalidRequestError when the engine was started without one."""
        if self.tokenizer is None:
            raise InvalidRequestError("this engine has no tokenizer: skip_tokenizer_init is set")
        return self.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """What a request without sampling parameters gets."""
        return self._inputs.default_params()

    @property
    def eos_token_ids(self) -> list[int]:
        """The model's end-of-sequence tokens."""
        return self._inputs.eos_token_ids

    def reset_prefix_cache(self) -> bool:
        """Forget cached prompts; False while a request holds blocks."""
        return self.core.reset_prefix_cache()

    def shutdown(self) -> None:
        """Abort what runs and release the workers. The engine is of no use afterwards."""
        self._is_shut_down = True
        self.abort_request(self._outputs.request_ids)
        self.core.shutdown()


def _check_logits_processors(processors: Any) -> None:
    if not all(callable(processor) for processor in processors):
        raise InvalidRequestError("logits_processors must be callables", parameter="logits_processors")
