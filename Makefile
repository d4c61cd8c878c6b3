# Shortcuts. Each target makes .venv when it is missing; Python is 3.11 or later.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p && break; done)
BIN := .venv/bin
STUDY_EXTRAS := faiss,hf,report
ALL_EXTRAS := faiss,hf,report,dev,triton

.PHONY: install install-dev test check study bench test-gpu clean

install: .venv/.study

install-dev: .venv/.dev

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "topkit needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/.study: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[$(STUDY_EXTRAS)]"
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[$(ALL_EXTRAS)]"
	touch $@

test: .venv/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

test-gpu: .venv/.dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

study: .venv/.study
	$(BIN)/topkit study fidelity-vs-accuracy --preset quick --out runs/study
	$(BIN)/topkit report runs/study

bench: .venv/.study
	$(BIN)/topkit bench

clean:
	rm -rf .venv
