# Everything a person or CI runs. Needs Python >= 3.11 and make; the rest is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PICTURED := overload noisy-tenant deadline-storm model-swapping
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo check test-fast test test-faults bench pictures described format lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## Make .venv with .venv/bin/triage

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Triage needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: install ## Thirty seconds of the real thing on this machine: Kafka, worker, llama.cpp, mixed load
	@$(BIN)/triage demo

check: install ## Format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-fast: install ## Tests without a broker (under a minute)
	$(PYTEST) -q -m "not kafka and not llama and not simulated and not faults"

test: install ## All tests, on a real Apache Kafka and a real llama.cpp server
	$(PYTEST) -q --durations=10

test-faults: install ## The long campaign: SECONDS=600
	$(PYTEST) -q -m faults --fault-seconds=$(or $(SECONDS),600)

bench: install ## Short form of every benchmark, beside a bare loop in the same run
	$(BIN)/python -m benchmarks

pictures: install ## Renew docs/pictures from a real demo and from scenarios
	$(BIN)/python -m cli.picture.shots docs/pictures
	for name in $(PICTURED); do $(BIN)/triage bench --simulate $$name --picture docs/pictures/$$name.svg >/dev/null || exit 1; done

described: install ## Renew docs/openapi.json and docs/errors.md from the code
	$(BIN)/python -m gateway.describe openapi > docs/openapi.json
	$(BIN)/python -m gateway.describe errors > docs/errors.md

format: install ## Rewrite the code in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## Renew requirements.lock (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-strip-extras \
	  --all-extras --group test --group check pyproject.toml build-requirements.in -o requirements.lock

clean: ## Remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
