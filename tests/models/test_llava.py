"""LLaVA against transformers, and against itself under every schedule: chunks that end inside an image, the prefix cache,
preemption, several sequences.
"""

from __future__ import annotations

import msgspec
import pytest
import torch

from quire import LLM, SamplingParams
from quire.engine.messages import AddRequest
from quire.errors import InvalidRequestError
from quire.ops import cpu
from quire.runner import multimodal
from tests.equivalence.workload import SEEDED, assert_same, logits_hashes
from tests.models.checkpoints import same_or_near_tie
from tests.models.llava import (
    IMAGE_TOKEN,
    SHAPES,
    draw_picture,
    expand,
    greedy,
    make_llava,
    preprocess,
    save_llava,
)

NUM_TOKENS = 8
BASE = {"skip_tokenizer_init": True, "max_model_len": 128, "num_gpu_blocks_override": 64, "num_threads": 1}
A, B = draw_picture(1), draw_picture(2, 40, 90)
PROMPTS = {
    "text": ([5, 6, 7, 8], []),
    "one-image": ([1, 9, IMAGE_TOKEN, 20, 21, 22], [A]),
    "two-images": ([1, IMAGE_TOKEN, IMAGE_TOKEN, 30, 31, 32, 33], [A, B]),
    "image-first-and-last": ([IMAGE_TOKEN, 40, IMAGE_TOKEN], [B, A]),
}


@pytest.fixture(scope="module", params=SHAPES)
def case(request, tmp_path_factory):
    """(path of a checkpoint, its model in transformers)."""
    torch.set_num_threads(1)
    model = make_llava(request.param)
    return save_llava(model, tmp_path_factory.mktemp(request.param)), model


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.set_num_threads(1)
    return save_llava(make_llava("llama-class-token-dropped"), tmp_path_factory.mktemp("llava"))


def as_prompt(ids, pictures):
    return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}


def test_greedy_equals_transformers(case):
    path, model = case
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, logprobs=0, detokenize=False)
    with LLM(str(path), dtype="float32", **BASE) as llm:
        vision = llm.llm_engine.config.model.hf.vision
        outputs = llm.generate([as_prompt(*prompt) for prompt in PROMPTS.values()], params, use_tqdm=False)
    for output, (ids, pictures) in zip(outputs, PROMPTS.values(), strict=True):
        expanded = expand(ids, vision.num_image_tokens)
        assert output.prompt_token_ids == expanded
        expected = greedy(model, expanded, preprocess(path, pictures) if pictures else None, NUM_TOKENS)
        chosen = output.outputs[0]
        logprob_of = [chosen.logprobs[i][token].logprob for i, token in enumerate(chosen.token_ids)]
        same_or_near_tie(list(chosen.token_ids), logprob_of.__getitem__, expected)


# -- every schedule ------------------------------------------------------------------------------------------

ALONE = {"enable_prefix_caching": False, "max_num_batched_tokens": 256}
CHUNKED = {"enable_prefix_caching": True, "max_num_batched_tokens": 16, "max_num_seqs": 4, "num_threads": 2}
PRECISIONS = {
    "float32": {"dtype": "float32"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
}
needs_kernels = pytest.mark.skipif(cpu.load()[0] is None, reason="the reference ops are equal up to rounding only")


def seeded(index: int, **changes) -> SamplingParams:
    return SEEDED.params(index, max_tokens=4, detokenize=False, **changes)


def run_alone(path, prompts, params, **options):
    """Each prompt by itself, in one chunk."""
    with LLM(str(path), **BASE | ALONE | options) as llm:
        return [llm.generate(p, own, use_tqdm=False)[0] for p, own in zip(prompts, params, strict=True)]


def tower_runs(llm: LLM) -> int:
    return llm.llm_engine.core.executor._worker.runner._images.num_encoded


@needs_kernels
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_schedule_gives_the_same_logits(path, precision, caplog):
    prompts = [as_prompt(*prompt) for prompt in PROMPTS.values()]
    params = [seeded(i) for i in range(len(prompts))]
    with logits_hashes() as hashes:
        expected = run_alone(path, prompts, params, **PRECISIONS[precision])
    with LLM(str(path), **BASE | CHUNKED | PRECISIONS[precision]) as llm, logits_hashes() as found:
        for is_cached in (False, True):
            outputs = llm.generate(prompts, params, use_tqdm=False)
            assert_same(expected, outputs)
            assert (sum(output.num_cached_tokens for output in outputs) > 100) is is_cached
        assert tower_runs(llm) == 2
    assert found == hashes and len(hashes) == 4 * len(prompts)
    assert "runs op by op" not in caplog.text


@needs_kernels
def test_cached_blocks_belong_to_their_image(path):
    """The same text with another picture shares only the blocks before the picture, and gets its own answer."""
    text = list(range(2, 20))
    prompts = [as_prompt([*text, IMAGE_TOKEN, 3, 4], [picture]) for picture in (A, B, A)]
    params = [seeded(0)] * 3
    expected = run_alone(path, prompts, params)
    assert expected[0].outputs[0].token_ids != expected[1].outputs[0].token_ids
    with LLM(str(path), **BASE) as llm:
        outputs = [llm.generate(prompt, own, use_tqdm=False)[0] for prompt, own in zip(prompts, params)]
    assert_same(expected, outputs)
    assert [output.num_cached_tokens for output in outputs] == [0, 16, 32]


@needs_kernels
def test_a_salt_separates_images_too(path):
    """Whether somebody else has sent a picture does not show, neither in cached tokens nor in the tower's time."""
    prompts = [as_prompt([7, IMAGE_TOKEN, 8], [A]) | {"cache_salt": salt} for salt in ("a", "b", "a")]
    with LLM(str(path), **BASE) as llm:
        outputs = [llm.generate(prompt, seeded(0), use_tqdm=False)[0] for prompt in prompts]
        assert tower_runs(llm) == 2
    assert [output.num_cached_tokens for output in outputs] == [0, 0, 16]
    assert_same(run_alone(path, prompts[:1], [seeded(0)]) * 3, outputs)


@needs_kernels
@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_preempted_requests_go_on_with_their_images(path, mode):
    prompts = [as_prompt([10 + i, IMAGE_TOKEN, 3, 4 + i], [picture]) for i, picture in enumerate((A, B, A, B))]
    params = [seeded(i).clone(max_tokens=40) for i in range(4)]
    expected = run_alone(path, prompts, params)
    options = {"num_gpu_blocks_override": 12, "preemption_mode": mode, "swap_space": 0.1, "enable_prefix_caching": False}
    with LLM(str(path), **BASE | {"max_num_batched_tokens": 16} | options) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert llm.llm_engine.stats().total_preemptions > 0
    assert_same(expected, outputs)


@needs_kernels
def test_sequences_of_one_request_share_the_image(path):
    prompt = as_prompt([7, IMAGE_TOKEN, 8], [A])
    expected = run_alone(path, [prompt] * 3, [seeded(0).clone(seed=70 + i) for i in range(3)])
    with LLM(str(path), **BASE | {"max_num_batched_tokens": 16}) as llm:
        output = llm.generate(prompt, seeded(0).clone(seed=70, n=3), use_tqdm=False)[0]
        assert tower_runs(llm) == 1
    assert [list(choice.token_ids) for choice in output.outputs] == [
        list(alone.outputs[0].token_ids) for alone in expected
    ]


@needs_kernels
def test_a_request_that_another_process_began_goes_on(path):
    """What is sent again after the death of the engine's process: the command, over the wire, with the tokens so far."""
    prompt = as_prompt([7, IMAGE_TOKEN, 8], [B])
    with LLM(str(path), **BASE) as llm:
        expected = list(llm.generate(prompt, seeded(3), use_tqdm=False)[0].outputs[0].token_ids)
        (command,) = llm.llm_engine.prepare("again", prompt, seeded(3)).children
        command = msgspec.structs.replace(command, output_token_ids=expected[:2], is_replay=True)
        core = llm.llm_engine.core
        core.add(msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=AddRequest))
        assert core.reset_prefix_cache()
        tokens = expected[:2]
        while core.has_work():
            tokens += [token for update in core.step() for token in update.new_token_ids]
    assert tokens == expected


def test_embeddings_that_the_cache_dropped_are_made_again(path, monkeypatch):
    monkeypatch.setattr(multimodal, "CACHE_BYTES", 0)
    prompts, params = [as_prompt(*prompt) for prompt in PROMPTS.values()], [seeded(i) for i in range(4)]
    with LLM(str(path), **BASE | CHUNKED) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert tower_runs(llm) == 5  # once for each image in a prompt, though most are computed in several chunks
    assert_same(run_alone(path, prompts, params), outputs)


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (as_prompt([1, 2], [A]), "the prompt must hold the image token (id 258) once for each image, got it 0 times for 1"),
        ({"prompt_token_ids": [IMAGE_TOKEN]}, "got it 1 times for 0 images"),
        (as_prompt([IMAGE_TOKEN], ["a.png"]), "multi_modal_data.image[0] must be a data:, file:// or http(s) URL, got 'a.png'"),
        (as_prompt([IMAGE_TOKEN], [7]), "multi_modal_data.image[0] must be an address or a PIL.Image.Image, got 7"),
        ({"prompt_token_ids": [1], "multi_modal_data": {"audio": 1}}, 'must be None or {"image": one image or a list of them}'),
        (as_prompt([IMAGE_TOKEN] * 3, [A] * 3), "a prompt may have at most 2 images (limit_mm_per_prompt), got 3"),
    ],
)
def test_wrong_images_are_refused(limited, prompt, message):
    with pytest.raises(InvalidRequestError) as raised:
        limited.generate(prompt, seeded(0), use_tqdm=False)
    assert message in str(raised.value)


@pytest.fixture(scope="module")
def limited(path):
    with LLM(str(path), limit_mm_per_prompt={"image": 2}, **BASE) as llm:
        yield llm


def test_images_that_exceed_the_context_are_not_even_opened(path):
    with LLM(str(path), **BASE) as llm, pytest.raises(InvalidRequestError) as raised:
        llm.generate(as_prompt([IMAGE_TOKEN] * 6, [None] * 6), seeded(0), use_tqdm=False)
    assert "6 images of 25 tokens each do not fit the context of 128 tokens" in str(raised.value)


def test_a_model_without_vision_refuses_images():
    with LLM(max_model_len=128) as llm, pytest.raises(InvalidRequestError) as raised:
        llm.generate(as_prompt([1], [A]), seeded(0), use_tqdm=False)
    assert raised.value.parameter == "multi_modal_data"
    assert "this model reads no images" in str(raised.value)


@needs_kernels
def test_only_the_language_model_is_rounded(path):
    with LLM(str(path), dtype="bfloat16", quantization="int8", **BASE) as llm:
        model = llm.llm_engine.core.executor._worker.model
    formats = {
        part: {layer.weight.format.name for layer in getattr(model, part).modules() if hasattr(layer, "quant")}
        for part in ("vision_tower", "multi_modal_projector", "language_model")
    }
    assert formats == {"vision_tower": {"bfloat16"}, "multi_modal_projector": {"bfloat16"}, "language_model": {"int8"}}


def test_checkpoints_of_both_layouts_load(path, tmp_path):
    """transformers before version 5 wrote other names; towers with a head came with more tensors than are read."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path / "model.safetensors")
    renamed = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors.items()
    } | {"vision_tower.vision_model.embeddings.position_ids": torch.zeros(1, 26, dtype=torch.int64)}
    newest = {
        name.replace("language_model.lm_head", "lm_head")
        .replace("language_model.model.", "model.language_model.")
        .replace("vision_tower.", "model.vision_tower.")
        .replace("multi_modal", "model.multi_modal"): tensor
        for name, tensor in tensors.items()
    }
    (prompt,) = [as_prompt(*PROMPTS["one-image"])]
    expected = run_alone(path, [prompt], [seeded(0)])
    for number, layout in enumerate((renamed, newest)):
        assert set(layout) != set(tensors)
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(layout, folder / "model.safetensors", {"format": "pt"})
        for name in ("config.json", "preprocessor_config.json"):
            (folder / name).write_text((path / name).read_text())
        assert_same(expected, run_alone(folder, [prompt], [seeded(0)]))
