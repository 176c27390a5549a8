"""docs/adding-a-model.md shows code that is there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import quire
from quire.models import mixtral, olmo2, register_model

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-model.md").read_text()


def test_every_block_of_the_page_is_in_an_example():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    source = inspect.getsource(olmo2) + inspect.getsource(mixtral)
    for block in blocks:
        assert block in source, block


def test_names_and_files_of_the_page_exist():
    root = Path(quire.__file__).parents[1]
    for name in re.findall(r"`((?:quire|tests)/[\w/]+(?:\.py)?/?)`", PAGE):
        assert (root / name).exists(), name
    line = re.search(r'^    ("Olmo2ForCausalLM": .*,)$', PAGE, re.MULTILINE)
    assert line and line[1] in (root / "quire" / "models" / "__init__.py").read_text()
    assert callable(register_model) and "`quire.models.register_model(" in PAGE
