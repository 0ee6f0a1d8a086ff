# `make app` opens the workbench, `make test` runs the checks of a contributor, `make test-all` all.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CACHE := $(or $(INTERP_CACHE),cache)
WEIGHTS := $(CACHE)/models/smollm2-135m-instruct/README.md

export INTERP_CACHE := $(abspath $(CACHE))
export TOKENIZERS_PARALLELISM := false

.PHONY: app test quick test-all check docs bench clean
.DELETE_ON_ERROR:

app: $(READY) $(WEIGHTS)
	$(BIN)/interp app

# Files are shared out among JOBS processes, so that a file's fixtures are made once. Types are
# checked meanwhile.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest
test: $(WEIGHTS)
	$(MAKE) --jobs 2 check quick

quick: $(WEIGHTS)
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not long and not browser"

# Browser tests time what they see, so that they run alone. The tests build the pages too.
test-all: check $(WEIGHTS)
	$(PYTEST) -n $(JOBS) --dist loadfile -m "not browser"
	$(PYTEST) -m browser

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache

# The documentation, in build/site; no step needs the network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# About an hour on one core; the circuits' benchmark needs a checkout of its peer.
bench: $(READY) $(WEIGHTS)
	for name in patching growth generation; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks $$name --json $(CACHE)/bench_$$name.json || exit 1; \
	done

# The tested pins (constraints.txt); torch first and by its exact version, so that no other build
# of it is resolved on the way.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[app,cluster,dev,docs,train]"
	touch $@

$(WEIGHTS): | $(READY)
	$(BIN)/python -c "from interp.models import embedded; embedded.directory()"

clean:
	rm -rf $(VENV) $(CACHE)/*
