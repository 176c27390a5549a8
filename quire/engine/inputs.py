"""From a prompt and `SamplingParams` to the requests of the core: tokenize, check against the model, fill in,
fan out.

Everything a user can get wrong about one request is found here, before the core hears of it.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from quire.batch import ImageInput
from quire.config.types import MediaConfig, ModelConfig
from quire.engine.clients import ONLY_CLIENT, ClientPlace
from quire.engine.messages import AddRequest
from quire.errors import InvalidRequestError, NotSupportedError, PromptTooLongError, describe, wrong_value
from quire.sampling_params import SamplingParams
from quire.tokenizer import Tokenizer, encode_within

Prompt = str | Sequence[int] | Mapping[str, Any]
"""Text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`; the last two with
`"multi_modal_data": {"image": image or list of images}` where the model reads images, each a PIL.Image.Image or a Picture, and
token ids with `"token_type_ids"`, zeros and then ones, where it tells two texts apart.
"""

if TYPE_CHECKING:
    from quire.engine.image_prompts import ImagePrompts

NO_MEDIA = MediaConfig()
_CHILD_SEPARATOR = "#"


@dataclass(slots=True)
class PreparedRequest:
    """A checked request: what the user will see again, and one core request for each of its `n` sequences."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    children: list[AddRequest]
    arrival_time: float
    """Wall clock, seconds since the epoch."""
    tenant: str = ""


def draw_seed(engine_seed: int, counter: int) -> int:
    """A seed in [0, 2**62) that depends on the engine's seed and the number of requests before this one."""
    digest = blake2b(f"{engine_seed}:{counter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2


class InputProcessor:
    """Turns prompts into `PreparedRequest`s for one model. `max_model_len`
    is what the KV cache and the model allow.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        max_model_len: int,
        place: ClientPlace = ONLY_CLIENT,
        media: MediaConfig = NO_MEDIA,
    ) -> None:
        """`place` keeps the core's ids and the seeds of several clients of one core apart."""
        self._config = config
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab_size = config.hf.vocab_size
        self._images: ImagePrompts | None = None
        if config.hf.vision is not None:
            from quire.engine.image_prompts import ImagePrompts  # Pillow, which text alone does not need

            self._images = ImagePrompts(config.hf.vision, media, max_model_len)
        self._client = place.index
        self._id_prefix = f"{place.index}/" if place.num_clients > 1 else ""
        self._counter = itertools.count(place.index, place.num_clients)
        tokenizer_eos = tokenizer.eos_token_id if tokenizer is not None else None
        eos = [*config.hf.eos_token_ids, *([] if tokenizer_eos is None else [tokenizer_eos])]
        self.eos_token_ids = list(dict.fromkeys(eos))

    def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        cache_salt: str | None = None,
        tenant: str = "",
        limit_logprobs: bool = True,
        add_special_tokens: bool = True,
    ) -> PreparedRequest:
        """Check and complete one request; `params` is not changed. Raises
        InvalidRequestError or a subclass of it.
        """
        text, token_ids, cache_salt = self._parse(prompt, cache_salt)
        params = self.default_params() if params is None else params
        if not isinstance(params, SamplingParams):
            raise InvalidRequestError(f"sampling_params must be SamplingParams, got {describe(params)}")
        self._check_output(params)
        params = self._place_segments(prompt, params)
        token_ids = self._tokenize(text, token_ids, params, add_special_tokens)
        token_ids, images = self._place_images(prompt, token_ids, params, cache_salt)
        self._check_prompt(token_ids, params)
        self._check_params(params, limit_logprobs)
        params = self._complete(params, len(token_ids))
        return PreparedRequest(
            request_id=request_id,
            prompt=text,
            prompt_token_ids=token_ids,
            params=params,
            children=self._fan_out(
                request_id,
                token_ids,
                params,
                {"priority": priority, "cache_salt": cache_salt, "tenant": tenant, "images": images},
            ),
            arrival_time=time.time(),
            tenant=tenant,
        )

    def default_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, else Quire's defaults."""
        return SamplingParams(**self._config.default_sampling_params)

    # -- the prompt ------------------------------------------------------------------------------------------

    def _parse(
        self, prompt: Prompt, cache_salt: str | None
    ) -> tuple[str | None, list[int] | None, str | None]:
        """(text, token ids, cache salt); one of the first two may be None."""
        if isinstance(prompt, str):
            return prompt, None, cache_salt
        if isinstance(prompt, Mapping):
            return self._parse_mapping(prompt, cache_salt)
        if isinstance(prompt, bytes) or not isinstance(prompt, Sequence):
            raise _bad_prompt(prompt)
        token_ids: Sequence[Any] = prompt
        return None, list(token_ids), cache_salt

    @staticmethod
    def _parse_mapping(
        prompt: Mapping[str, Any], cache_salt: str | None
    ) -> tuple[str | None, list[int] | None, str | None]:
        text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        unknown = set(prompt) - {"prompt", "prompt_token_ids", "cache_salt", "multi_modal_data", "token_type_ids"}
        if unknown or (text is None and ids is None) or not isinstance(text, str | None):
            raise _bad_prompt(prompt)
        return text, None if ids is None else list(ids), prompt.get("cache_salt", cache_salt)

    def _tokenize(
        self, text: str | None, ids: list[int] | None, params: SamplingParams, add_special_tokens: bool
    ) -> list[int]:
        if ids is None:
            ids = self._encode(text or "", params, add_special_tokens)
        keep = params.truncate_prompt_tokens
        if keep is None:
            return ids
        return ids[-(self._longest(params) if keep == -1 else keep) :]

    def _place_images(
        self, prompt: Prompt, token_ids: list[int], params: SamplingParams, cache_salt: str | None
    ) -> tuple[list[int], list[ImageInput]]:
        """The prompt with a placeholder for each of its images' tokens, and the images."""
        data = prompt.get("multi_modal_data") if isinstance(prompt, Mapping) else None
        if self._images is None:
            if data:
                raise wrong_value("multi_modal_data", "left out: this model reads no images", data)
            return token_ids, []
        return self._images.place(token_ids, data, cache_salt, is_cut=params.truncate_prompt_tokens is not None)

    def _place_segments(self, prompt: Prompt, params: SamplingParams) -> SamplingParams:
        """The parameters with the place where the prompt's second text begins, if it says so."""
        given = prompt.get("token_type_ids") if isinstance(prompt, Mapping) else None
        if given is None:
            return params
        pooling, ids = params.pooling, prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
        if pooling is None or self._config.pooling is None or not self._config.pooling.has_segments:
            raise wrong_value("token_type_ids", "left out: this model does not tell two texts apart", given)
        num_tokens = len(ids) if isinstance(ids, Sequence) else 0
        num_ones = sum(segment == 1 for segment in given) if isinstance(given, Sequence) else 0
        start = num_tokens - num_ones
        if not isinstance(given, Sequence) or list(given) != [0] * start + [1] * num_ones:
            raise wrong_value(
                "token_type_ids", f"zeros and then ones, one for each of the {num_tokens} prompt_token_ids", given
            )
        keep = params.truncate_prompt_tokens
        if keep is not None:  # the last tokens stay
            start = max(0, start - max(0, num_tokens - (self._longest(params) if keep == -1 else keep)))
        return _changed(params, pooling=msgspec.structs.replace(pooling, second_text=start))

    def _encode(self, text: str, params: SamplingParams, add_special_tokens: bool) -> list[int]:
        if self._tokenizer is None:
            raise InvalidRequestError(
                "a text prompt needs a tokenizer, and skip_tokenizer_init is set: give prompt_token_ids",
                parameter="prompt",
            )
        if not text:
            raise InvalidRequestError("prompt must not be empty", parameter="prompt", value=text)
        keep = params.truncate_prompt_tokens
        if params.pooling is not None and keep is not None:
            longest = self._longest(params)
            return encode_within(self._tokenizer, text, longest if keep == -1 else keep, add_special_tokens)
        max_chars = self._max_model_len * self._tokenizer.max_chars_per_token
        if keep is None and len(text) > max_chars:
            raise self._too_long(f"{len(text)} characters, more than that many tokens can hold")
        return self._tokenizer.encode(text, add_special_tokens)

    def _longest(self, params: SamplingParams) -> int:
        """Tokens that a prompt may have: all but one, unless no output follows."""
        return self._max_model_len - (params.pooling is None)

    def _check_prompt(self, token_ids: list[int], params: SamplingParams) -> None:
        if not token_ids:
            raise InvalidRequestError(
                "prompt must hold at least one token", parameter="prompt", value=token_ids
            )
        if len(token_ids) > self._longest(params):
            raise self._too_long(f"{len(token_ids)} tokens", len(token_ids))
        self._check_ids("prompt_token_ids", token_ids)

    def _too_long(self, amount: str, num_tokens: int | None = None) -> PromptTooLongError:
        return PromptTooLongError(
            f"This model's maximum context length is {self._max_model_len} tokens. However, your prompt "
            f"contains {amount}. Please shorten the prompt"
            + ("." if self._config.pooling else ", leaving room for at least one token of output."),
            parameter="prompt",
            num_tokens=num_tokens,
            max_model_len=self._max_model_len,
        )

    def _check_ids(self, parameter: str, token_ids: Sequence[int]) -> None:
        if not token_ids:
            return
        if set(map(type, token_ids)) == {int} and min(token_ids) >= 0 and max(token_ids) < self._vocab_size:
            return
        for token_id in token_ids:
            if (
                not isinstance(token_id, int)
                or isinstance(token_id, bool)
                or not 0 <= token_id < self._vocab_size
            ):
                raise InvalidRequestError(
                    f"{parameter} must hold token ids in [0, {self._vocab_size}), got {describe(token_id)}",
                    parameter=parameter,
                    value=token_id,
                )

    # -- the parameters --------------------------------------------------------------------------------------

    def _check_output(self, params: SamplingParams) -> None:
        if params.pooling is None and self._config.pooling is not None:
            raise NotSupportedError(
                "this model gives vectors and generates no text: use LLM.embed or /v1/embeddings, or start it with "
                "runner=generate (--runner generate) if it is no encoder",
                parameter="model",
            )

    def _check_params(self, params: SamplingParams, limit_logprobs: bool) -> None:
        self._check_ids("stop_token_ids", params.stop_token_ids)
        self._check_ids("logit_bias", list(params.logit_bias or ()))
        self._check_ids("allowed_token_ids", params.allowed_token_ids or ())
        if len(params.allowed_token_ids or ()) > self._vocab_size:
            raise wrong_value(
                "allowed_token_ids", f"a list of at most {self._vocab_size} ids", f"{len(params.allowed_token_ids or ())} ids"
            )
        if self._tokenizer is None and (params.stop or params.bad_words):
            name = "stop" if params.stop else "bad_words"
            raise InvalidRequestError(
                f"{name} needs a tokenizer, and skip_tokenizer_init is set", parameter=name
            )
        if limit_logprobs:
            self._check_logprobs("logprobs", params.logprobs)
            self._check_logprobs("prompt_logprobs", params.prompt_logprobs)

    def _check_logprobs(self, parameter: str, value: int | None) -> None:
        limit = self._config.max_logprobs
        if value is None or limit == -1:
            return
        if (self._vocab_size if value == -1 else value) > limit:
            raise InvalidRequestError(
                f"{parameter} must be at most {limit} (the engine's max_logprobs), got {value}",
                parameter=parameter,
                value=value,
            )

    def _complete(self, params: SamplingParams, num_prompt_tokens: int) -> SamplingParams:
        """A copy with everything resolved: room for output, end-of-sequence ids, token ids of bad words."""
        if params.pooling is not None:
            return params
        room = self._max_model_len - num_prompt_tokens
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        return _changed(
            params,
            max_tokens=max_tokens,
            min_tokens=min(params.min_tokens, max_tokens),
            eos_token_ids=[] if params.ignore_eos else self.eos_token_ids,
            bad_words_token_ids=self._bad_words_token_ids(params.bad_words),
            detokenize=params.detokenize and self._tokenizer is not None,
        )

    def _bad_words_token_ids(self, bad_words: list[str]) -> list[list[int]] | None:
        """Each word as the tokenizer writes it at the start of a text and after a space."""
        if not bad_words or self._tokenizer is None:
            return None
        found: dict[tuple[int, ...], None] = {}
        for word in bad_words:
            for spelling in (word.lstrip(), " " + word.lstrip()):
                ids = self._tokenizer.encode(spelling, False, parameter="bad_words")
                if ids:
                    found[tuple(ids)] = None
        return [list(ids) for ids in found]

    # -- the sequences ---------------------------------------------------------------------------------------

    def _fan_out(
        self,
        request_id: str,
        token_ids: list[int],
        params: SamplingParams,
        options: dict[str, Any],
    ) -> list[AddRequest]:
        """One core request per sequence. What only concerns text stays
        behind; the first one reports the prompt.
        """
        seed = draw_seed(self._config.seed, next(self._counter)) if params.seed is None else params.seed
        request_id = self._id_prefix + request_id
        first_id = request_id if params.n == 1 else f"{request_id}{_CHILD_SEPARATOR}0"
        core_params = _changed(params, n=1, stop=[], bad_words=[], stream=False)
        later_params = _changed(core_params, prompt_logprobs=None) if params.n > 1 else core_params
        return [
            AddRequest(
                request_id=first_id if index == 0 else f"{request_id}{_CHILD_SEPARATOR}{index}",
                prompt_token_ids=token_ids,
                params=core_params if index == 0 else later_params,
                seed=(seed + index) % 2**63,
                fork_of=None if index == 0 else first_id,
                client=self._client,
                **options,
            )
            for index in range(params.n)
        ]


def _changed(params: SamplingParams, **changes: Any) -> SamplingParams:
    """A copy of checked parameters with fields that need no check."""
    changed = copy.copy(params)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _bad_prompt(prompt: object) -> InvalidRequestError:
    return InvalidRequestError(
        'prompt must be text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, got '
        + describe(prompt),
        parameter="prompt",
        value=prompt,
    )
