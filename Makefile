# Two commands: `make lab` (JupyterLab on the first notebook) and `make test`.
# Bare `make` builds .venv and says what is next. Override the interpreter with PYTHON=python3.12.
PYTHON ?= python3
PORT ?= 8888
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(VENV)/.native
ROOT_FLAG := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)
SLOW := browser or full or oracle or compile or gpu or weights

.DEFAULT_GOAL := install
.PHONY: install lab demo test test-slow bench nano lint clean

install: $(STAMP) $(NATIVE)
	$(if $(filter-out install,$(MAKECMDGOALS)),,@echo "installed in $(VENV); next: make lab")

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	@echo "1/3 environment: $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "2/3 packages at the versions of constraints.txt (minutes; 3 GB on disk, more with CUDA)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[lab,dev]"
	@touch $(STAMP)

# Installing builds the C++ kernels; this builds them again when their sources have changed.
# Without a compiler it says so, and everything runs on the slower reference backend.
$(NATIVE): $(wildcard kernels/gptoss_kernels/native/src/*) kernels/gptoss_kernels/native/build.py $(STAMP)
	@echo "3/3 kernels, compiled for this machine"
	-@$(BIN)/python -m gptoss_kernels.native.build
	@touch $(NATIVE)

lab: install
	$(BIN)/jupyter lab $(ROOT_FLAG) --port=$(PORT) notebooks/00_first_trace.ipynb

demo: install
	$(BIN)/python -m gptoss_workbench.demo

test: install
	$(BIN)/python -m pytest -q -m "not ($(SLOW))" --durations=10

test-slow: install
	$(BIN)/python .ci/slow.py

bench: install
	$(BIN)/python kernels/bench/cpu.py
	$(BIN)/python kernels/bench/hooks.py
	$(BIN)/python kernels/bench/observing.py
	$(BIN)/python kernels/bench/routing_corpus.py
	$(BIN)/python kernels/bench/patching.py
	$(BIN)/python kernels/bench/views.py

nano: install
	$(BIN)/python -m gptoss_workbench.nano.train --out out/nano

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

clean:
	rm -rf $(VENV) out .oracle
