"""`SamplingParams` from fields that a protocol's clients call by other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quire.errors import InvalidRequestError
from quire.sampling_params import SamplingParams


def sampling_params(fields: Mapping[str, Any], names: Mapping[str, str]) -> SamplingParams:
    """The parameters. A rule that is broken is told under the client's name: `names` has it by the engine's name."""
    try:
        return SamplingParams(**fields)
    except InvalidRequestError as error:
        name = names.get(error.parameter or "")
        if name is None:
            raise
        text = str(error).removeprefix(str(error.parameter))
        raise InvalidRequestError(f"{name}{text}", parameter=name, value=error.value) from None
