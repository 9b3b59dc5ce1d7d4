# What one does with Quadrate, here and in CI: up, down, test, check, format, generate, bench.
# It needs make, a Python from 3.11 to 3.13 and a package index. PYTHON=… chooses the interpreter, ARGS=… goes on to the command.

SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	"$$python" -c '$(SUITABLE)' 2>/dev/null && command -v "$$python" && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-annotate --no-header

.DELETE_ON_ERROR:
.PHONY: help up down install install-openvino install-test install-parity test check format generate bench constraints clean

help: ## Show what there is.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: install ## Install what is missing, get the small model and run the whole mesh until Ctrl-C.
	@exec $(BIN)/quadrate up $(ARGS)

down: ## Stop a mesh that runs in the background (make up ARGS=--detach).
	@$(BIN)/quadrate down $(ARGS)

install: $(VENV)/installed ## Install what running needs, pinned and checked by hash.
install-openvino: $(VENV)/installed-openvino ## Add OpenVINO, for quadrate up --precision fast on a CPU.
install-test: $(VENV)/installed-test ## Add what the tests need.
install-parity: $(VENV)/installed-parity ## Add torch and transformers, for the tests marked parity.

test: install-test check ## Check the code and run all tests that this machine can run.
	@$(BIN)/quadrate models pull minilm
	@$(BIN)/python -m pytest --cov --cov-report=term:skip-covered $(ARGS)

check: install-test ## Run the linters, the type checker and the checks of imports and protos.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code

format: install-test ## Format the code and the protos.
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format .
	@$(BIN)/buf format --write

generate: install-test ## Make the stubs, Envoy's descriptor set and the tables of the documentation.
	@PATH="$(CURDIR)/$(BIN):$$PATH" buf generate
	@$(BIN)/buf build --as-file-descriptor-set --exclude-source-info --output envoy/descriptors.binpb
	@$(BIN)/python tools/documentation.py

bench: install-parity ## Measure engine, reranking and mesh beside what they are compared to (some minutes; needs wrk).
	@$(BIN)/python benchmarks/engine.py
	@$(BIN)/python benchmarks/reranking.py
	@for part in rest idle null start memory; do $(BIN)/python benchmarks/mesh.py $$part || exit 1; done

constraints: ## Pin the newest versions that pyproject.toml allows, with their hashes (needs uv).
	@rm -f constraints/*.txt
	$(COMPILE) --extra cpu --extra edge pyproject.toml constraints/build.in -o constraints/runtime.txt
	$(COMPILE) --extra cpu --extra edge --extra openvino -c constraints/runtime.txt pyproject.toml constraints/build.in -o constraints/openvino.txt
	$(COMPILE) --extra cpu --extra edge --extra test -c constraints/openvino.txt pyproject.toml constraints/build.in -o constraints/test.txt
	$(COMPILE) --extra cpu --extra edge --extra test --extra parity --extra bench -c constraints/test.txt pyproject.toml constraints/build.in -o constraints/parity.txt

clean: ## Remove the environment and all that can be made again.
	@rm -rf $(VENV) dist build htmlcov .coverage .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
	  echo "Quadrate needs a Python from 3.11 to 3.13 with venv, and found none. Install one, or name it: make up PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c '$(SUITABLE)' || { \
	  echo "$(PYTHON) is no Python from 3.11 to 3.13 with venv. Name another one: make up PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)

$(VENV)/installed: constraints/runtime.txt pyproject.toml | $(BIN)/python
	@echo "Installing what running needs into $(VENV); this takes about a minute the first time."
	@$(PIP) install --require-hashes -r constraints/runtime.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/installed-openvino: constraints/openvino.txt $(VENV)/installed
	@echo "Installing OpenVINO into $(VENV)."
	@$(PIP) install --require-hashes -r constraints/openvino.txt
	@touch $@

$(VENV)/installed-test: constraints/test.txt $(VENV)/installed
	@echo "Installing what the tests need into $(VENV)."
	@$(PIP) install --require-hashes -r constraints/test.txt
	@touch $@

$(VENV)/installed-parity: constraints/parity.txt $(VENV)/installed-test
	@echo "Installing torch and transformers into $(VENV); these are some gigabytes."
	@$(PIP) install --require-hashes -r constraints/parity.txt
	@touch $@
