# Two commands from a fresh clone: `make demo` and `make test`. Each makes .venv and installs once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STEPS ?=
ARGS ?=

NATIVE := $(shell find fastrlhf/csrc tests/support -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-all lint format bench doctor gpu-check install clean

install: $(INSTALLED)

# Again only when what is installed, or what is compiled, has changed.
$(INSTALLED): pyproject.toml setup.py constraints.txt requirements-demo.txt $(shell find fastrlhf/csrc native_build -type f -not -name '*.pyc' 2>/dev/null)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,test,lint]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-demo.txt
	touch $@

demo: $(INSTALLED)
	$(BIN)/fastrlhf demo $(if $(STEPS),--steps $(STEPS)) $(ARGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not gpu" $(ARGS)

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu" $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(NATIVE)

bench: $(INSTALLED)
	$(BIN)/python -m pytest benchmarks/kernels --benchmark-only $(ARGS)

doctor: $(INSTALLED)
	$(BIN)/fastrlhf doctor

# Every kernel test and benchmark on this machine's GPU; without one it only counts them.
gpu-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

clean:
	rm -rf $(VENV) build fastrlhf/*.so fastrlhf/_build_info.json
