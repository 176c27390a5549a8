"""Every `quire serve` in deploy/ and in the documentation of it is one that the real parser takes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

import pytest

from quire.cli.main import build_parser
from quire.cli.serve import engine_args_from
from quire.cli.tgi_options import apply_environment
from quire.server.args import ServerArgs
from tests.deploy.files import DEPLOY, DOCKERFILES, ROOT, dockerfile_instructions, read_yaml


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """(file, words after `quire`)."""
    for file in DOCKERFILES:
        found = dict(dockerfile_instructions(file))
        yield file.name, [*json.loads(found["ENTRYPOINT"])[1:], *json.loads(found.get("CMD", "[]"))]
    compose = read_yaml(DEPLOY / "compose.yaml")[0]["services"]["quire"]
    yield "compose.yaml", ["serve", *(re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in compose["command"])]
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in read_yaml(file):
            for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
                yield file.name, [*container["command"][1:], *container["args"]]
    (start,) = re.findall(r"^ExecStart=\S+ (.*)$", (DEPLOY / "quire.service").read_text(), re.MULTILINE)
    yield "quire.service", [word for word in shlex.split(start) if not word.startswith("$")]
    text = (ROOT / "docs/deploying.md").read_text().replace("\\\n", " ")
    for line in re.findall(r"^ *(?:\S+=\S+ )*quire (serve.*)$", text, re.MULTILINE):
        yield "deploying.md", shlex.split(line, comments=True)
    for line in re.findall(r"docker run .*? quire:\w+(.*)$", text, re.MULTILINE):
        yield "deploying.md", ["serve", *shlex.split(line, comments=True)]


@pytest.mark.parametrize(("file", "words"), list(command_lines()))
def test_the_parser_takes_it(file: str, words: list[str]) -> None:
    args = build_parser("serve").parse_args(words)
    apply_environment(args)
    args.host, args.port = args.host or "127.0.0.1", args.port or 8000
    engine_args_from(args)
    ServerArgs.from_cli_args(args)


def test_all_files_are_read() -> None:
    files = {file for file, _ in command_lines()}
    assert files == {
        "Dockerfile.cpu",
        "Dockerfile.cuda",
        "compose.yaml",
        "deployment.yaml",
        "quire.service",
        "deploying.md",
    }


def test_a_flag_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit):
        build_parser("serve").parse_args(["serve", "--shutdown-timout", "5"])
