"""What every test leaves behind: the log as it found it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from quire import envs
from quire.log import configure, get_logger, warn_once

_VARIABLES = (envs.LOG_LEVEL.name, envs.LOG_FORMAT.name)


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A command that runs in the tests' process sets level and format, by variables too, for all that come after it; and what is
    said once is said once a test."""
    warn_once.cache_clear()
    logger = get_logger("quire")
    level, values = logger.level, {name: os.environ.get(name) for name in _VARIABLES}
    yield
    if values == {name: os.environ.get(name) for name in _VARIABLES} and level == logger.level:
        return
    for name, value in values.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    configure(format=envs.LOG_FORMAT.read())
    if values[envs.LOG_FORMAT.name] is None:
        del os.environ[envs.LOG_FORMAT.name]
    logger.setLevel(level)
