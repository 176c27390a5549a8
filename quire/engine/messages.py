"""What crosses the border between the engine and those who ask it: commands in, events out. Plain data,
msgpack-able.

The same messages travel over a queue to a thread and over a socket to a process. Nothing here is ever
pickled.
"""

from __future__ import annotations

from typing import Any

import msgspec

from quire.batch import ImageInput
from quire.core.request import RequestUpdate
from quire.engine.stats import EngineStats
from quire.sampling_params import SamplingParams

# -- commands: to the engine ---------------------------------------------------------------------------------


class AddRequest(msgspec.Struct, tag="add", array_like=True):
    """Start one sequence. Everything is checked and resolved."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    """In [0, 2**63)."""
    priority: int = 0
    """Lower runs earlier, under the priority policy."""
    cache_salt: str | None = None
    fork_of: str | None = None
    """The first sequence of the same request, whose prompt blocks this one shares."""
    client: int = 0
    """Which of the engine's clients asks, and gets the updates."""
    output_token_ids: list[int] = []
    """Tokens that an earlier process of the engine gave: the sequence goes on behind them."""
    num_prompt_logprobs: int = 0
    """Prompt positions whose logprobs that process reported."""
    is_replay: bool = False
    """Sent again after the death of a process: admitted already, and not counted twice."""
    is_suspect: bool = False
    """May have killed that process: computed while no other suspect is (`quarantine.py`)."""
    images: list[ImageInput] = []
    """What the placeholders in the prompt stand for."""
    tenant: str = ""
    """For whom it is computed: what the policy `fair` shares the engine between."""


class AbortRequests(msgspec.Struct, tag="abort", array_like=True):
    """Stop these sequences and free their blocks; unknown ids are ignored."""

    request_ids: list[str]


class Call(msgspec.Struct, tag="call", array_like=True):
    """Run a method of `EngineCore` that is named in `CALLABLE`; answered by a `Reply`."""

    call_id: int
    method: str
    client: int = 0
    """Who gets the reply."""
    arguments: list[Any] = []


class ForgetClient(msgspec.Struct, tag="forget", array_like=True):
    """A client is gone: stop its sequences, and tell it nothing more."""

    client: int


class Stop(msgspec.Struct, tag="stop", array_like=True):
    """End the loop now; unfinished requests are dropped."""


Command = AddRequest | AbortRequests | Call | ForgetClient | Stop

CALLABLE = frozenset({"reset_prefix_cache", "observe"})
"""Methods of `EngineCore` that a `Call` may name."""

# -- events: from the engine ---------------------------------------------------------------------------------


class EngineReady(msgspec.Struct, tag="ready", array_like=True):
    """The model is loaded: the first word of an engine's process."""

    max_model_len: int
    """What the model and the KV cache both allow, tokens."""
    num_blocks: int
    block_size: int
    stats: EngineStats = msgspec.field(default_factory=EngineStats)
    """Before the first step."""


class StepOutputs(msgspec.Struct, tag="step", array_like=True):
    """All that one step changed."""

    updates: list[RequestUpdate]
    stats: EngineStats


class Reply(msgspec.Struct, tag="reply", array_like=True):
    """The answer to one `Call`."""

    call_id: int
    value: Any = None
    error: str | None = None


class EngineDown(msgspec.Struct, tag="down", array_like=True):
    """A process of the engine has ended. Another one is being started, and `EngineUp` or `EngineDied` follows."""

    reason: str
    """How it ended: a sentence."""
    is_own_fault: bool
    """Whether it broke by itself; if not, somebody may have killed it."""
    held: list[int]
    """Keys (`step_board.sequence_key`) of the sequences that it was computing."""
    suspect: int = 0
    """Key of the one suspect among them; 0: there was none, or it had got its token."""


class EngineUp(msgspec.Struct, tag="up", array_like=True):
    """A process of the engine is ready. It knows no request: whoever has some sends them now."""

    epoch: int
    """Counts the processes of one engine."""
    ready: EngineReady
    stall_s: float = 0.0
    """Seconds since the process before it ended."""


class EngineDied(msgspec.Struct, tag="died", array_like=True):
    """The engine cannot go on, for good. `error_type` is the name of a class of `quire.errors`.

    Also the last word of a process that an exception ends.
    """

    error: str
    error_type: str = "EngineDeadError"


Event = StepOutputs | Reply | EngineDown | EngineUp | EngineDied

ProcessWord = EngineReady | EngineDied
"""What the engine's process says to its parent: whether the model is loaded, and what ended it."""
LifeEvent = EngineDown | EngineUp | EngineDied
"""What becomes of the engine's processes, as their supervisor tells it."""
