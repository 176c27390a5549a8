# What people run on a fresh machine with Python >= 3.11: serve, test, lint, build, measure.
# Everything lives in $(VENV); a second call installs nothing.
#   PYTHON    the Python that makes the environment        PIP_ARGS  extra arguments for pip
#   HOST PORT where `make serve` listens                   ARGS      extra arguments for the command that runs

PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
PIP_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
BUILD_INPUTS := pyproject.toml CMakeLists.txt $(wildcard cmake/*) $(wildcard csrc/cpu/*.*)

.PHONY: help serve browser test test-all test-isa lint wheel bench doctor build clean

help:
	@echo 'make serve     install and serve the built-in model on http://$(HOST):$(PORT)'
	@echo 'make test      install and run the tests that a developer waits for'
	@echo 'make test-all  the same with the slow tests'
	@echo 'make browser   install Chromium with apt-get for the tests of the page, which skip without one'
	@echo 'make test-isa  every kernel at every instruction-set level, emulated where this machine lacks it'
	@echo 'make lint      style, types and the layer contracts'
	@echo 'make bench     measure the engine; ARGS goes to `quire bench`'
	@echo 'make doctor    show the machine, the build and the backends in use'
	@echo 'make wheel     build dist/quire-*.whl'
	@echo 'make build     compile csrc/ again'
	@echo 'make clean     remove $(VENV) and everything built'

serve: $(VENV)/.installed
	@echo 'Once it is up, try:'
	@echo "  curl -s http://$(HOST):$(PORT)/v1/chat/completions -H 'Content-Type: application/json' \\"
	@echo "    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is the capital of France?\"}]}'"
	$(BIN)/quire serve --host $(HOST) --port $(PORT) $(ARGS)

test: $(VENV)/.extra-test $(VENV)/.extra-test-no-deps
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { apt-get update -q && apt-get install -y -q --no-install-recommends chromium; }

test-all: $(VENV)/.extra-test $(VENV)/.extra-test-no-deps $(VENV)/.extra-clients
	$(BIN)/python -m pytest -m "" $(ARGS)

test-isa: $(VENV)/.extra-test
	$(BIN)/python -m pytest -m "" tests/isa $(ARGS)

lint: $(VENV)/.extra-test $(VENV)/.extra-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed
	$(BIN)/quire bench $(ARGS)

doctor: $(VENV)/.installed
	$(BIN)/quire doctor $(ARGS)

wheel: $(VENV)/.installed
	$(PIP) wheel $(PIP_ARGS) --no-deps --wheel-dir dist .

build:
	rm -f $(VENV)/.installed
	$(MAKE) $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist

# ---------------------------------------------------------------- the environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Quire needs Python 3.11 or newer: make PYTHON=/path/to/python3.11'; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Editable: a change in quire/ needs no install, a change in csrc/ or the build does.
$(VENV)/.installed: $(BUILD_INPUTS) | $(BIN)/python
	$(PIP) install $(PIP_ARGS) --editable .
	@touch $@

# The packages of one extra, without building Quire again.
$(VENV)/.extra-%: pyproject.toml | $(VENV)/.installed
	@$(BIN)/python -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*project["optional-dependencies"][sys.argv[1]], sep="\n")' $* > $@.txt
	$(PIP) install $(PIP_ARGS) -r $@.txt
	@touch $@

$(VENV)/.extra-test-no-deps: tests/requirements-no-deps.txt | $(VENV)/.installed
	$(PIP) install $(PIP_ARGS) --no-deps -r $<
	@touch $@
