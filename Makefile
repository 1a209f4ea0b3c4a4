PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: run test test-fast check bench faults multihost lock

run: $(STAMP)  ## install what is needed, then run the quickstart
	$(BIN)/raysft submit jobs/quickstart.yaml

# Hundreds of processes import raysft and its tests: they are compiled once, wherever Python is told to keep nothing.
export PYTHONDONTWRITEBYTECODE :=

# Tests that start no Ray share two processes; the others have the machine to themselves: side by side
# both are slower than one after the other.
PURE := $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(STAMP)  ## install what is needed, then run all tests
	$(PURE) -m "not ray" --durations=20
	$(BIN)/python -m pytest -m "ray and not long" --durations=40

test-fast: $(STAMP)  ## the tests that answer within a minute
	$(PURE) -m "not ray and not slow" --hypothesis-profile fast

check: $(STAMP)  ## linter and type checker
	$(BIN)/ruff format --check raysft tests
	$(BIN)/ruff check raysft tests
	$(BIN)/mypy
	$(BIN)/mypy tests

multihost: $(STAMP)  ## a real cluster of three hosts in network namespaces; needs root
	command -v nft rsync && test -x /usr/sbin/sshd || \
		{ apt-get update -q && apt-get install -qy iproute2 nftables openssh-server openssh-client rsync; }
	$(BIN)/python -m pytest tests/multihost

CASES ?= 20
faults: $(STAMP)  ## a search killed at twenty random moments (or CASES=…); what is killed, hangs, has no disk; nodes that come and go
	RAYSFT_FAULTS=$(CASES) $(BIN)/python -m pytest tests/faults
	$(BIN)/python -m pytest -m long --ignore=tests/multihost --durations=20

bench: $(STAMP)  ## benchmarks, all or BENCH=name
	$(BIN)/python -m tests.benchmarks $(BENCH)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

lock:  ## exact versions for every supported Python, from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 \
		--no-header --no-annotate --no-emit-index-url --output-file requirements.lock
