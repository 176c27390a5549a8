"""Names, revisions, caches and tokens of the Hugging Face hub, as its own client understands them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quire
from tests.server.fake_hub import FakeHub

FOLIO = Path(quire.__file__).parent / "builtin" / "folio"
CONFIG, TOKENIZER = ("config.json", "generation_config.json"), ("tokenizer.json", "tokenizer_config.json")
FIRST, SECOND = "a" * 40, "b" * 40

RESOLVE = """
import json, sys
from quire import EngineArgs
from quire.engine.text import load_text_side
from quire.errors import QuireError

def resolve(options):
    try:
        config = EngineArgs(**options).create_engine_config()
        tokenizer = load_text_side(config)
        return [config.model.path, config.model.max_model_len, type(tokenizer).__name__]
    except QuireError as error:
        return f"{type(error).__name__}: {error}"

print(json.dumps([resolve(options) for options in json.loads(sys.argv[1])]))
"""


def add_snapshot(cache: Path, repo: str, commit: str, ref: str, files: tuple[str, ...], length: int = 1024) -> Path:
    """A revision of a repository as the hub's client keeps it; `length` is its context."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in files:
        shutil.copy(FOLIO / name, snapshot / name)
    if "config.json" in files:
        config = json.loads((FOLIO / "config.json").read_text()) | {"max_position_embeddings": length}
        (snapshot / "config.json").write_text(json.dumps(config))
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / ref).write_text(commit)
    return snapshot


def resolve(*options: dict[str, object], **environment: str) -> list[object]:
    """What each set of options leads to, in a process with these variables and no others of the hub's."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    command = [sys.executable, "-W", "ignore", "-c", RESOLVE, json.dumps(options)]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True, check=True)
    found: list[object] = json.loads(done.stdout)
    return found


def test_revisions_from_the_cache_without_a_network(tmp_path):
    cache = tmp_path / "home" / "hub"
    whole = CONFIG + TOKENIZER
    main = add_snapshot(cache, "owner/model", FIRST, "main", whole)
    old = add_snapshot(cache, "owner/model", SECOND, "v1", whole, length=512)
    bare = add_snapshot(cache, "owner/bare", FIRST, "main", CONFIG)
    add_snapshot(cache, "owner/words", FIRST, "main", TOKENIZER)
    moved = add_snapshot(tmp_path / "elsewhere", "owner/model", SECOND, "main", whole, length=256)
    model = {"model": "owner/model"}
    found = resolve(
        model,
        model | {"revision": "v1"},
        model | {"revision": SECOND},
        model | {"revision": "v9"},
        model | {"download_dir": str(tmp_path / "elsewhere")},
        {"model": "owner/bare"},
        {"model": "owner/bare", "tokenizer": "owner/words"},
        {"model": "owner/bare", "tokenizer": "owner/model", "tokenizer_revision": "v1"},
        {"model": "owner/bare", "tokenizer": "owner/model", "tokenizer_revision": "v9"},
        {"model": "owner/nobody"},
        HF_HOME=str(tmp_path / "home"),
        HF_HUB_OFFLINE="1",
    )
    assert found[0] == [str(main), 1024, "FastTokenizer"]
    assert found[1] == found[2] == [str(old), 512, "FastTokenizer"]
    assert "owner/model at revision v9 is not in the local cache" in found[3]
    assert found[4] == [str(moved), 256, "FastTokenizer"]
    assert found[5].startswith("ConfigError") and "holds no tokenizer" in found[5]
    assert found[6] == found[7] == [str(bare), 1024, "FastTokenizer"]
    assert "tokenizer owner/model at revision v9 is not in the local cache" in found[8]
    assert found[9].startswith("HubError") and "HF_HUB_OFFLINE=1" in found[9]


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({"hf_token": "hf_given"}, {"HF_TOKEN": "hf_other"}, "Bearer hf_given"),
        ({}, {"HUGGING_FACE_HUB_TOKEN": "hf_named"}, "Bearer hf_named"),
        ({}, {}, None),
    ],
    ids=["option", "variable", "none"],
)
def test_whose_token_the_hub_sees(tmp_path, options, environment, expected):
    files = {name: (FOLIO / name).read_bytes() for name in (*CONFIG, *TOKENIZER, "README.md")}
    hub = FakeHub("owner/model", files)
    try:
        (found,) = resolve(
            {"model": "owner/model", **options},
            HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1", **environment,
        )  # fmt: skip
    finally:
        hub.close()
    assert found[1:] == [1024, "FastTokenizer"], found
    assert hub.authorizations == {expected}
    assert sorted(hub.gets) == sorted((*CONFIG, *TOKENIZER))


def test_a_token_is_not_shown():
    config = quire.EngineArgs(model="folio", hf_token="hf_secret").create_engine_config()
    assert config.load.hf_token == "hf_secret" and "hf_secret" not in repr(config)
