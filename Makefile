# make demo    a real Label Studio fills up with masks after one annotation (KEEP=1: the servers stay up)
# make test    the whole test suite, with the real Label Studio and a real browser (ARGS="-k name" to choose)
# See docs/settings.md for the settings; everything is set up on first use.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo screenshots test lint format bench soak rehearsal lock readme clean

PYTHON_BIN := .venv/bin/python

# Threads of torch that wait for each other go to sleep: spinning, they take ten times as long where cores are shared.
export OMP_WAIT_POLICY ?= PASSIVE

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## .venv and .venv-label-studio from the lock files (TORCH_INDEX_URL=... for another build of torch)
	@tools/setup.sh main label-studio

demo:  ## annotate one task, watch the rest being pre-annotated; results in demo-out/ (KEEP=1 leaves the servers running)
	@tools/setup.sh main label-studio browser
	@KEEP="$(KEEP)" $(PYTHON_BIN) -u -m tools.demo

screenshots:  ## the documents' pictures of the demo, into docs/images (ARGS="--tasks 4" for a quicker run)
	@tools/setup.sh main label-studio browser
	@$(PYTHON_BIN) -u -m tools.screenshots $(ARGS)

# Unit tests need nothing of the machine and share its cores; the others start servers and run alone. In one process with
# them a kd-tree of scipy in the unit tests once ended it by a signal.
test:  ## the whole test suite (ARGS="..." goes to pytest)
	@tools/setup.sh main label-studio browser
	@$(PYTHON_BIN) -m pytest -n 2 tests/unit $(ARGS); unit=$$?; \
	$(PYTHON_BIN) -m pytest tests/component tests/contract tests/integration $(ARGS); rest=$$?; \
	for code in $$unit $$rest; do case $$code in 0) ;; 5) none=$$((none + 1)) ;; *) exit $$code ;; esac; done; \
	[ "$${none:-0}" -lt 2 ] || { echo "no test was selected"; exit 5; }

lint:  ## ruff and mypy
	@tools/setup.sh main
	@$(PYTHON_BIN) -m ruff check .
	@$(PYTHON_BIN) -m ruff format --check .
	@$(PYTHON_BIN) -m mypy

format:  ## let ruff write the formatting
	@tools/setup.sh main
	@$(PYTHON_BIN) -m ruff check --fix-only --quiet . ; $(PYTHON_BIN) -m ruff format .

bench:  ## measure the modes of the method on generated episodes (ARGS="..." goes to python -m research.bench)
	@tools/setup.sh main
	@$(PYTHON_BIN) -m research.bench $(ARGS)

soak:  ## kill the backend's processes while it works: one prediction each, none failed (ARGS="--kills 200 --tasks 200")
	@tools/setup.sh main
	@$(PYTHON_BIN) -m tools.soak $(ARGS)

rehearsal:  ## the pair of full size with random weights in its published layouts: seconds and memory (6 GB of disk)
	@tools/setup.sh main
	@$(PYTHON_BIN) -m research.rehearsal

lock:  ## write requirements/ from the installed environments
	@$(PYTHON_BIN) tools/lock.py

readme:  ## write the settings into docs/settings.md
	@$(PYTHON_BIN) -m tools.readme

clean:  ## remove both environments and everything that was generated
	rm -rf .venv .venv-label-studio .setup-lock demo-out build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
