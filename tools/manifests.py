"""`python -m tools.manifests`: render the plain Kubernetes manifests from the chart. Needs helm-python-sdk."""

from __future__ import annotations

from pathlib import Path

from helm_python.chart import Chart, values_from_yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
CHART = DEPLOY / "helm/quire"
VALUES = DEPLOY / "helm/plain-values.yaml"
MANIFESTS = DEPLOY / "kubernetes"
_HEADER = "# Rendered from deploy/helm/quire by `python -m tools.manifests`: change that, or plain-values.yaml beside it.\n"


def render(values: dict[str, object], name: str = "quire") -> dict[str, str]:
    """File name -> manifest, for each template that makes one."""
    with Chart.load(CHART) as chart:
        rendered = chart.render(values, name=name, namespace="default")
    manifests = {Path(path).name: text.strip() + "\n" for path, text in rendered.items() if path.endswith(".yaml")}
    return {name: text for name, text in manifests.items() if text.strip()}


def plain_manifests() -> dict[str, str]:
    """What the folder of plain manifests holds."""
    values = values_from_yaml(VALUES.read_text())
    return {name: _HEADER + text for name, text in render(values).items()}


if __name__ == "__main__":
    for name, text in plain_manifests().items():
        (MANIFESTS / name).write_text(text)
