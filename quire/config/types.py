"""Resolved configuration: frozen dataclasses that every layer above may read. Flags and defaults live in `engine_args.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from quire.config.fields import Fields
from quire.config.quantization import QuantizationConfig
from quire.config.vision import VisionConfig
from quire.pooling_params import PoolingKind

SchedulingPolicy = Literal["fcfs", "priority", "fair"]
PreemptionMode = Literal["recompute", "swap"]


@dataclass(frozen=True)
class HFConfig:
    """A checkpoint's config.json with the field's many spellings resolved once; models read only this."""

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    layer_norm_eps: float = 1e-5
    hidden_act: str = "silu"
    """`silu`, `gelu`, `gelu_tanh`, `relu` or `quick_gelu`."""
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """None or a dict with `rope_type` (and that type's own keys)."""
    rotary_dim: int = 0
    """Components of a head that turn, the first ones."""
    kv_lora_rank: int | None = None
    """Multi-head latent attention (2405.04434): size of the latent that a token's keys and values are made of. It is cached,
    with a key of rotary_dim components, for all heads together."""
    local_rope_theta: float | None = None
    """The base of the windowed layers where it is another one, without scaling."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Bias on q, k and v."""
    attention_out_bias: bool = False
    """Bias on the attention's output projection."""
    mlp_bias: bool = False
    sliding_window: int | None = None
    sliding_window_layers: tuple[bool, ...] | None = None
    """Per layer, whether the window applies; None: to every layer (when sliding_window is set)."""
    dtype: str = "float32"
    """The checkpoint's own dtype."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    quantization: QuantizationConfig | None = None
    """How the checkpoint's weights are quantized; None: they are floats."""
    vision: VisionConfig | None = None
    """For models that read images; all other fields are the language model's."""
    fields: Fields = field(default_factory=Fields, repr=False, compare=False)
    """The file as read: for what only one family has, and its own model reads."""

    def cached_vectors(self, num_ranks: int = 1) -> tuple[int, ...]:
        """What a token leaves in one layer's cache on each of `num_ranks` ranks: the sizes of its vectors."""
        if self.kv_lora_rank is not None:
            return self.kv_lora_rank, self.rotary_dim
        return (self.head_dim,) * (2 * max(1, self.num_key_value_heads // num_ranks))

    def window_of(self, layer_index: int) -> int | None:
        """The sliding window of a layer, or None where it sees all positions."""
        layers = self.sliding_window_layers
        return self.sliding_window if layers is None or layers[layer_index] else None


@dataclass(frozen=True)
class PoolingConfig:
    """What a model that gives vectors instead of text makes of a prompt's hidden states."""

    kind: PoolingKind
    normalize: bool = True
    """Whether vectors get the length 1, and a classifier's numbers become probabilities, unless a request says otherwise."""
    is_encoder: bool = False
    """Every token sees all others: a prompt is one step, and nothing of it is cached."""
    allows_dimensions: bool = False
    """Whether the model was trained for vectors that are cut off."""
    dimensions: tuple[int, ...] = ()
    """The lengths that it was trained for; empty: any."""
    num_labels: int = 0
    """Above 0 the model is a classifier, with so many numbers for a prompt."""
    has_segments: bool = False
    """Whether it tells the two texts of a pair apart by a number beside each token."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model, where its files are, and how it is computed."""

    model: str
    """As the user gave it: a folder, a hub id, or `folio`."""
    path: str
    """Local folder with config.json and weights."""
    tokenizer_path: str
    hf: HFConfig
    dtype: str
    """`float32`, `bfloat16` or `float16`: weights and activations; on a CPU activations are float32 whatever the weights are."""
    max_model_len: int
    served_model_names: tuple[str, ...]
    seed: int = 0
    tokenizer_mode: str = "auto"
    skip_tokenizer_init: bool = False
    model_impl: str = "quire"
    """`quire`, or `transformers` for an architecture that runs through the classes of that package."""
    trust_remote_code: bool = False
    quantization: str | None = None
    """`int8` or `int4`: linear layers are rounded to it at load. None: stored in `dtype`, or as the checkpoint quantized them."""
    quantization_group_size: int = 32
    """int4: inputs that share a weight scale, 32, 64 or 128."""
    quantization_activation_group: int = 64
    """Inputs that share an activation scale, 32, 64 or 128; 0 is all of a token's."""
    embedding_quantization: str | None = None
    """The same as `quantization` for the token embedding and the output head."""
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    default_sampling_params: dict[str, Any] = field(default_factory=dict)
    """SamplingParams fields taken from generation_config.json (unless told otherwise)."""
    chat_template: str | None = None
    """Template text given by the user instead of the tokenizer's."""
    pooling: PoolingConfig | None = None
    """None: the model generates text."""


@dataclass(frozen=True)
class LoadConfig:
    """How weights are read."""

    load_format: str = "auto"
    """`auto`, `safetensors`, `pt` or `dummy`."""
    download_dir: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    hf_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MediaConfig:
    """Which images a prompt may bring, and from where."""

    max_images: int | None = None
    """In one prompt; None: as many as the context holds."""
    local_path: str | None = None
    """Folder below which file:// addresses are read; None: they are refused."""
    domains: tuple[str, ...] = ()
    """Hosts that http(s) addresses may name; none: they are refused."""


@dataclass(frozen=True)
class CacheConfig:
    """KV cache: block size, sizes of the device and host pools, prefix caching."""

    block_size: int = 16
    """Tokens per block."""
    kv_cache_dtype: str = "auto"
    """`auto` (the model's dtype), `float32`, `bfloat16`, `float16` or `int8`."""
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    """Exact size of the device pool; None: from free memory."""
    num_blocks_override: int | None = None
    swap_space_bytes: int = 0
    """Host pool for preempted requests' blocks."""
    enable_prefix_caching: bool = True


@dataclass(frozen=True)
class SchedulerConfig:
    """Budgets and order of a step."""

    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    max_model_len: int = 2048
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    """0: no cap on one request's share of a step."""
    policy: SchedulingPolicy = "fcfs"
    least_shared_step: int = 128
    """Policy `fair`: a step beside other tenants may have so many tokens, however short their prompts are."""
    preemption_mode: PreemptionMode = "recompute"
    """`swap` needs a host pool; a request whose blocks do not fit there is recomputed."""
    max_num_queued_requests: int | None = None
    """Admission control, at the engine's door: further requests are refused while so many wait."""
    max_num_queued_requests_per_tenant: int | None = None
    """The same for the requests of one tenant."""


@dataclass(frozen=True)
class ParallelConfig:
    """How many ranks and what runs them."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    executor: str = "local"
    """`local` or `simulated`."""
    num_threads: int | None = None
    """Threads of a worker; None: the CPUs it may use."""
    device: str = "auto"
    """`auto`, `cpu` or `cuda`."""


@dataclass(frozen=True)
class EngineConfig:
    """Everything an engine needs, resolved and checked."""

    model: ModelConfig
    load: LoadConfig = LoadConfig()
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    parallel: ParallelConfig = ParallelConfig()
    media: MediaConfig = MediaConfig()
    disable_log_stats: bool = False
    step_timeout_s: float = 600.0
    """An engine process whose loop does not turn for so long is ended; 0: never."""


@dataclass(frozen=True)
class KVCacheSpec:
    """What the executor reserved: the pools that the block manager hands out."""

    num_blocks: int
    num_host_blocks: int
    block_size: int
    bytes_per_block: int
