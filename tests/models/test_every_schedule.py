"""Every architecture gives the same logits to the last bit alone, in a batch, in chunks and from the prefix cache, in every
precision, and runs as one captured program.
"""

from __future__ import annotations

import pytest
import torch

from quire import LLM
from quire.ops import cpu
from tests.equivalence.workload import SEEDED, assert_same, logits_hashes
from tests.models import plain_torch
from tests.models.checkpoints import make_model, save
from tests.models.selection import first_of_each
from tests.models.shapes import VOCAB_SIZE

_extension, _reason = cpu.load()
pytestmark = pytest.mark.skipif(
    _extension is None, reason=f"the reference ops are equal up to rounding only: {_reason}"
)

PRECISIONS = {
    "float32": {"dtype": "float32"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
}
BASE = {"skip_tokenizer_init": True, "max_model_len": 128, "num_gpu_blocks_override": 64, "num_threads": 1}
ALONE = {"enable_prefix_caching": False, "max_num_batched_tokens": 256}
CHUNKED = {"enable_prefix_caching": True, "max_num_batched_tokens": 16, "max_num_seqs": 4, "num_threads": 2}
LENGTHS = (1, 15, 16, 17, 33, 50, 49, 100)


def make_prompts() -> list[list[int]]:
    """Around block borders; those of more than 32 tokens share their first 32."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(2, VOCAB_SIZE, (32,), generator=generator).tolist()
    drawn = [torch.randint(2, VOCAB_SIZE, (n,), generator=generator).tolist() for n in LENGTHS]
    return [shared + ids[32:] if len(ids) > 32 else ids for ids in drawn]


PROMPTS = [{"prompt_token_ids": ids} for ids in make_prompts()]
PARAMS = [SEEDED.params(i, max_tokens=4, detokenize=False) for i in range(len(PROMPTS))]


def run(path, together: bool, **options):
    """Outputs and hashes of all logits."""
    with LLM(str(path), **BASE | options) as llm, logits_hashes() as hashes:
        if together:
            outputs = [llm.generate(PROMPTS, PARAMS, use_tqdm=False) for _ in range(2)]
            assert sum(output.num_cached_tokens for output in outputs[1]) >= 100
            assert_same(*outputs)
            return outputs[1], hashes
        done = [llm.generate(p, own, use_tqdm=False)[0] for p, own in zip(PROMPTS, PARAMS, strict=True)]
        return done, hashes


@pytest.mark.parametrize("shape", first_of_each())
def test_every_schedule_gives_the_same_logits(shape, tmp_path, caplog):
    torch.set_num_threads(1)
    if shape in plain_torch.MODELS:
        path = plain_torch.MODELS[shape]().save(tmp_path)
    else:
        path = save(make_model(shape), tmp_path)
    for precision in PRECISIONS.values():
        expected, hashes = run(path, together=False, **precision, **ALONE)
        outputs, found = run(path, together=True, **precision, **CHUNKED)
        assert_same(expected, outputs)
        assert found == hashes and len(hashes) >= 4 * len(PROMPTS) - 4
    assert "runs op by op" not in caplog.text
