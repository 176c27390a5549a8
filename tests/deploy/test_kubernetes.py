"""The chart and the plain manifests: rendered by Helm's own library, valid against Kubernetes' schemas, and what a pod promises
fits what the server does.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from quire.server.app import APIS
from tests.deploy.files import DEPLOY, read_yaml

helm = pytest.importorskip("helm_python.chart", reason="helm-python-sdk is not installed")
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")

from tools.manifests import CHART, MANIFESTS, plain_manifests, render  # noqa: E402

VERSIONS = ("1.27.0", kubernetes_validate.latest_version())
"""An old one that clouds still run, and the newest known."""
EVERYTHING = {
    "apiKey": "a",
    "adminApiKey": "b",
    "hfToken": "c",
    "servedModelName": "m",
    "extraArgs": ["--quantization", "int8"],
    "env": [{"name": "QUIRE_LOG_LEVEL", "value": "INFO"}],
    "imagePullSecrets": [{"name": "registry"}],
    "shutdownTimeout": 300,
    "persistence": {"existingClaim": "models"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"name": "apps"}}}]},
    "nodeSelector": {"gpu": "yes"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "podAnnotations": {"a": "b"},
    "resources": {"limits": {"nvidia.com/gpu": 1}},
}
VALUES: list[dict[str, Any]] = [
    {},
    EVERYTHING,
    {"existingSecret": "keys", "networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
]


def documents(values: dict[str, Any], name: str = "quire") -> dict[str, dict[str, Any]]:
    """Kind -> resource."""
    return {document["kind"]: document for document in map(yaml.safe_load, render(values, name).values())}


def pod_of(resources: dict[str, dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = resources["Deployment"]["spec"]["template"]["spec"]
    return pod


@pytest.mark.parametrize("values", VALUES)
def test_lint(values: dict[str, Any]) -> None:
    report = helm.lint(CHART, values, strict=True)
    assert report["total_charts_linted"] == 1 and not report["errors"]
    assert [m for m in report["messages"] if m["severity"] >= 2] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", VALUES)
def test_what_is_rendered_is_valid(values: dict[str, Any], version: str) -> None:
    for kind, document in documents(values).items():
        if kind != "ServiceMonitor":  # the Prometheus operator's, not Kubernetes'
            kubernetes_validate.validate(document, version, strict=True)


def test_the_judge_can_refuse() -> None:
    document = documents({})["Deployment"]
    document["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["httpGet"]["route"] = "/"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


def test_every_part_is_there_when_it_is_asked_for() -> None:
    always = {"Deployment", "Service"}
    assert set(documents({})) == always | {"PodDisruptionBudget", "NetworkPolicy"}
    assert set(documents(VALUES[2])) == always
    assert set(documents(EVERYTHING)) == always | {
        "PodDisruptionBudget",
        "NetworkPolicy",
        "HorizontalPodAutoscaler",
        "ServiceMonitor",
        "Secret",
    }


@pytest.mark.parametrize(
    "values", [{"replica": 2}, {"shutdownTimeout": "soon"}, {"service": {"type": "Ingress"}}, {"model": ""}]
)
def test_wrong_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"schema|replica|shutdownTimeout|type|model"):
        render(values)


@pytest.mark.parametrize("name", ["quire", "my-quire", "llm"])
def test_the_parts_find_each_other(name: str) -> None:
    resources = documents(EVERYTHING, name)
    labels = resources["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        resources["Service"]["spec"]["selector"],
        resources["Deployment"]["spec"]["selector"]["matchLabels"],
        resources["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        resources["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() and selector for selector in selectors)
    target = resources["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
    assert target == resources["Deployment"]["metadata"]["name"]
    assert "replicas" not in resources["Deployment"]["spec"]
    keys = [entry["valueFrom"]["secretKeyRef"] for entry in container_env(resources) if "valueFrom" in entry]
    assert {key["name"] for key in keys} == {resources["Secret"]["metadata"]["name"]}
    assert {key["key"] for key in keys} == set(resources["Secret"]["stringData"])


def container_env(resources: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = pod_of(resources)["containers"][0]["env"]
    return env


@pytest.mark.parametrize("values", VALUES)
def test_a_pod_outlives_its_requests_and_may_do_little(values: dict[str, Any]) -> None:
    pod = pod_of(documents(values))
    (container,) = pod["containers"]
    (shutdown,) = [word for word in container["args"] if word.startswith("--shutdown-timeout=")]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > int(shutdown.split("=")[1]) + pause
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]


def test_probes_ask_routes_that_need_no_key() -> None:
    (container,) = pod_of(documents({}))["containers"]
    asked = {container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    answered = {route.path for api in APIS for route in api.routes if route.method == "GET" and route.is_open}
    assert asked == {"/ready", "/health"} and asked <= answered


def test_the_queue_scales() -> None:
    (metric,) = documents(EVERYTHING)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == "vllm_num_requests_waiting"
    (rule,) = read_yaml(DEPLOY / "prometheus/adapter-values.yaml")[0]["rules"]["custom"]
    assert "vllm:num_requests_waiting" in rule["seriesQuery"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]


def test_the_plain_manifests_are_the_charts() -> None:
    found = {file.name: file.read_text() for file in MANIFESTS.iterdir()}
    assert found == plain_manifests(), "run `python -m tools.manifests`"


@pytest.mark.parametrize("file", sorted((DEPLOY / "kubernetes").glob("*.yaml")), ids=lambda file: file.name)
def test_the_plain_manifests_are_valid(file: Any) -> None:
    for document in read_yaml(file):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
