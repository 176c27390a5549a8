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
from quire.errors import HubError
from quire.loader.configuration import files_of
from quire.loader.hub_name import HubName, gguf_files, parse_hub_name
from tests.loader.gguf.writing import add_tokenizer, write_model
from tests.models.checkpoints import make_model
from tests.server.fake_hub import COMMIT, FakeHub, commit_of

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


@pytest.fixture(scope="module")
def gguf_repository(tmp_path_factory) -> dict[str, bytes]:
    """A repository of GGUF files as they are published: types, one in parts in a folder of its own, and what is no model."""
    root = tmp_path_factory.mktemp("repository")
    model = make_model("llama-mha-biases-untied", hidden_size=96, intermediate_size=96)
    whole = write_model(model, root / "x.gguf", add=add_tokenizer(FOLIO)).read_bytes()
    first = write_model(model, root / "x-BF16.gguf", add=add_tokenizer(FOLIO), part_tensors=24)
    files = {f"BF16/{part.name}": part.read_bytes() for part in files_of(first)}
    assert len(files) > 1
    names = ("x-IQ4_XS.gguf", "x-Q4_K_M.gguf", "x-Q8_0.gguf")
    beside = {"mmproj-x-Q8_0.gguf": b"GGUF", "imatrix.gguf": b"GGUF", "README.md": b"", "config.json": b"{}"}
    return files | dict.fromkeys(names, whole) | beside


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("owner/x-GGUF", "x-Q4_K_M.gguf"),
        ("hf.co/owner/x-GGUF:latest", "x-Q4_K_M.gguf"),
        ("owner/x-GGUF:Q8_0", "x-Q8_0.gguf"),
        ("owner/x-GGUF:iq4_xs", "x-IQ4_XS.gguf"),
        ("owner/x-GGUF:BF16", "BF16/x-BF16-00001-of-00003.gguf"),
        ("owner/x-GGUF/BF16/x-BF16-00001-of-00003.gguf", "BF16/x-BF16-00001-of-00003.gguf"),
    ],
)
def test_gguf_files_of_a_repository(tmp_path, gguf_repository, model, expected):
    hub = FakeHub("owner/x-GGUF", gguf_repository)
    options = dict(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1")
    try:
        (online,) = resolve({"model": model}, **options)
    finally:
        hub.close()
    assert online[0].endswith(f"/{expected}") and online[1:] == [512, "FastTokenizer"], online
    assert sorted(hub.gets) == sorted(name for name in gguf_repository if name.startswith(expected.split("-00001")[0]))
    assert resolve({"model": model}, **options, HF_HUB_OFFLINE="1") == [online]


def test_gguf_files_that_a_repository_lacks(tmp_path, gguf_repository):
    files = {name: content for name, content in gguf_repository.items() if "00002-of" not in name}
    hub = FakeHub("owner/x-GGUF", files)
    models = ("owner/x-GGUF:Q2_K", "owner/x-GGUF:BF16", "owner/x-GGUF/none.gguf", "owner/x-GGUF:v9", "owner/nobody:Q4_0")
    try:
        found = resolve(
            *({"model": model} for model in models),
            HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET="1",
        )  # fmt: skip
    finally:
        hub.close()
    there = "it has BF16/x-BF16-00001-of-00003.gguf, x-IQ4_XS.gguf, x-Q4_K_M.gguf, x-Q8_0.gguf"
    assert found[0] == f"HubError: owner/x-GGUF has no GGUF file of quantization Q2_K; {there}"
    assert found[1].startswith("HubError: owner/x-GGUF lacks parts of BF16/") and "00002-of-00003" in found[1]
    assert found[2] == f"HubError: owner/x-GGUF has no none.gguf; {there}"
    assert "must be a folder or a hub id, got 'owner/x-GGUF:v9'" in found[3]
    assert "the hub has no model owner/nobody" in found[4]


def test_a_checkpoint_comes_before_gguf_files_beside_it():
    names = ["config.json", "model.safetensors", "m-Q4_K_M.gguf"]
    assert gguf_files(names, parse_hub_name("o/n")) == []
    assert gguf_files(names, parse_hub_name("o/n:Q4_K_M")) == ["m-Q4_K_M.gguf"]
    only = ["a-Q2_K.gguf", "a-BF16.gguf", "mmproj-F16.gguf"]
    assert gguf_files(only, parse_hub_name("o/n")) == ["a-BF16.gguf"]
    with pytest.raises(HubError, match="no GGUF file of quantization F16"):
        gguf_files(only, parse_hub_name("o/n:F16"))


def test_a_tag_is_a_quantization_or_a_revision():
    for tag in ("Q4_K_M", "q8_0", "IQ3_XXS", "UD-Q4_K_XL", "F16", "bf16", "MXFP4_MOE", "TQ1_0"):
        assert parse_hub_name(f"o/n:{tag}") == HubName("o/n", tag) and parse_hub_name(f"o/n:{tag}").quantization == tag
    for tag in ("main", "v1", "4bit", "gptq-4bit-32g", "a" * 40):
        assert parse_hub_name(f"o/n:{tag}").revision == tag and parse_hub_name(f"o/n:{tag}").quantization is None


def config_of(length: int) -> bytes:
    return json.dumps(json.loads((FOLIO / "config.json").read_text()) | {"max_position_embeddings": length}).encode()


@pytest.fixture
def hub():
    """owner/model, with 512 positions on main, 256 on the branch `short`; the branch `bare` has no tokenizer."""
    files = {name: (FOLIO / name).read_bytes() for name in (*CONFIG, *TOKENIZER)} | {"config.json": config_of(512)}
    short = files | {"config.json": config_of(256)}
    bare = {name: short[name] for name in CONFIG}
    hub = FakeHub("owner/model", files, {"short": short, "bare": bare})
    yield hub
    hub.close()


def at(hub: FakeHub, home: Path, **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}


def test_revisions_are_downloaded_once_and_then_there_without_a_network(tmp_path, hub):
    model = {"model": "owner/model"}
    asked = (
        model,
        model | {"revision": "short"},
        model | {"revision": commit_of("short")},
        model | {"revision": "bare", "tokenizer_revision": "main"},
        model | {"revision": "bare", "tokenizer": "owner/model", "tokenizer_revision": "short"},
        {"model": str(FOLIO), "tokenizer": "owner/model", "tokenizer_revision": "short"},
    )
    online = resolve(*asked, model | {"revision": "v9"}, {"model": "owner/other"}, **at(hub, tmp_path))
    snapshots = tmp_path / "hub" / "models--owner--model" / "snapshots"
    bare = [str(snapshots / commit_of("bare")), 256, "FastTokenizer"]
    short = [str(snapshots / commit_of("short")), 256, "FastTokenizer"]
    assert online[0] == [str(snapshots / COMMIT), 512, "FastTokenizer"]
    assert online[1:6] == [short, short, bare, bare, [str(FOLIO), 1024, "FastTokenizer"]]
    assert online[6] == "HubError: owner/model has no revision v9"
    assert online[7].startswith("HubError: the hub has no model owner/other")
    assert len(hub.gets) == len(set(hub.gets)) + 1, "the same content came twice"  # config.json, of two revisions
    num_requests = hub.num_requests
    assert resolve(*asked, **at(hub, tmp_path, HF_HUB_OFFLINE="1")) == online[:6]
    assert hub.num_requests == num_requests, "the hub was asked in spite of HF_HUB_OFFLINE"


def test_where_the_cache_is(tmp_path, hub):
    """`download_dir` comes before HF_HUB_CACHE, and that before HF_HOME; ~ is the home folder."""
    home, cache, given = tmp_path / "home", tmp_path / "cache", tmp_path / "given"
    options = {"model": "owner/model"}
    where = at(hub, home, HF_HUB_CACHE=str(cache), HOME=str(tmp_path))
    for option, folder in (({}, cache), ({"download_dir": str(given)}, given), ({"download_dir": "~/own"}, tmp_path / "own")):
        (found,) = resolve(options | option, **where)
        assert found[0] == str(folder / "models--owner--model" / "snapshots" / COMMIT)
    assert not (home / "hub").exists()


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((403, "GatedRepo"), "model owner/model is gated: accept its licence on the hub and set HF_TOKEN"),
        ((401, "RepoNotFound"), "the hub has no model owner/model (or it is private: set HF_TOKEN"),
    ],
    ids=["gated", "private"],
)
def test_models_that_want_a_token(tmp_path, hub, refusal, message):
    hub.refusal = refusal
    where = at(hub, tmp_path)
    asked = {"model": "owner/model"}
    without, wrong, right = resolve(asked, asked | {"hf_token": "hf_bad"}, asked | {"hf_token": hub.token}, **where)
    assert without.startswith(f"HubError: {message}") and wrong.startswith(f"HubError: {message}")
    assert right[1:] == [512, "FastTokenizer"]
    hub.authorizations.clear()
    (tmp_path / "token").write_text("hf_good")  # as `hf auth login` leaves it
    assert resolve({"model": "owner/model", "download_dir": str(tmp_path / "other")}, **where)[0][1:] == [512, "FastTokenizer"]
    assert hub.authorizations == {"Bearer hf_good"}


def test_a_tokenizer_that_wants_a_token(tmp_path, hub):
    hub.refusal = (403, "GatedRepo")
    asked = {"model": str(FOLIO), "tokenizer": "owner/model"}
    without, right = resolve(asked, asked | {"hf_token": hub.token}, **at(hub, tmp_path))
    assert without.startswith("HubError: tokenizer owner/model is gated")
    assert right == [str(FOLIO), 1024, "FastTokenizer"]


def test_a_hub_out_of_reach(tmp_path):
    hub = FakeHub("owner/model", {})
    hub.close()
    (found,) = resolve({"model": "owner/model"}, **at(hub, tmp_path, HF_HUB_DOWNLOAD_TIMEOUT="2", HF_HUB_ETAG_TIMEOUT="2"))
    assert found.startswith("HubError: model owner/model") and "HF_HUB_OFFLINE=1" in found


def test_tokenizer_modes_of_a_downloaded_tokenizer(tmp_path, hub):
    model = {"model": "owner/model"}
    found = resolve(*(model | {"tokenizer_mode": mode} for mode in ("auto", "hf", "slow", "fast")), **at(hub, tmp_path))
    assert [each[2] for each in found[:2]] == ["FastTokenizer", "FastTokenizer"]
    assert found[2][2] in ("FastTokenizer", "TransformersTokenizer")
    assert found[3] == "ConfigError: tokenizer_mode must be one of auto, hf, slow, got 'fast'"


def test_a_token_is_not_shown():
    config = quire.EngineArgs(model="folio", hf_token="hf_secret").create_engine_config()
    assert config.load.hf_token == "hf_secret" and "hf_secret" not in repr(config)
