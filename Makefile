# What people type here. `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
# A file stays on one process: what its tests share (oracle answers, kernels compiled ahead) is then made once.
PYTEST_FLAGS ?= -n auto --dist loadfile
# What the C++ module is built for: `local` is the lowest and the best that this machine runs; a wheel is built for all.
INSTRUCTION_SETS ?= local
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CXX_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h')
FORMATTED := $(shell find csrc tests -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.PHONY: help install run test test-all test-asan bench gpu report lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## a virtual environment with bigkern, its C++ module and (if missing) torch in it

# A torch that $(PYTHON) can import already (2.10 or later) is used as it is; else the version in constraints.txt comes
# from the package index.
$(INSTALLED): pyproject.toml setup.py constraints.txt $(CXX_SOURCES)
	@if $(PYTHON) -c 'import sys, torch; v = torch.__version__.split("."); sys.exit((int(v[0]), int(v[1])) < (2, 10))' 2>/dev/null; then \
		echo "== $(VENV): using the torch that $(PYTHON) has"; \
		test -x $(RUN) || $(PYTHON) -m venv --system-site-packages $(VENV); \
	else \
		echo "== $(VENV): installing the torch that constraints.txt names"; \
		test -x $(RUN) || $(PYTHON) -m venv $(VENV); \
		$(RUN) -m pip install -q -c constraints.txt torch; \
	fi
	@echo "== building the C++ module and installing bigkern (two to three minutes)"
	@BIGKERN_INSTRUCTION_SETS=$(INSTRUCTION_SETS) $(RUN) -m pip install -q -c constraints.txt -e '.[test,train,triton,lint]'
	@touch $@

run: install  ## verify the ops, then train, compare and quantize the digits perceptron
	@echo "== every op against the float64 oracle"
	@$(RUN) -m bigkern verify
	@echo "== the 784-64-10 perceptron on handwritten digits, beside plain PyTorch, then in INT8"
	@$(RUN) -m bigkern train mlp --compare

test: install  ## the test suite (needs no GPU)
	$(RUN) -m pytest $(PYTEST_FLAGS) -m "not slow"

test-all: install  ## the test suite with the long sweeps on every instruction set, and the kernels under AddressSanitizer
	$(RUN) -m pip install -q -c constraints.txt -e .
	$(RUN) -m pytest $(PYTEST_FLAGS)
	$(MAKE) test-asan

# A build of its own folder, so that the instrumented module never replaces the fast one.
test-asan: install  ## the CPU kernels' tests under AddressSanitizer and UBSan
	PYTHON=$(RUN) tests/run_asan.sh

bench: install  ## every op against PyTorch eager and torch.compile, written to benchmarks/results/
	$(RUN) -m bigkern bench --save

# For a machine with a GPU and perhaps no network: nothing is fetched, PYTHON's own torch, triton and tools are used.
gpu:  ## tests and benchmarks of everything on this machine's GPU, in nine minutes; GPU_ARGS="--only attention"
	$(PYTHON) -m pip install -q --no-index --no-deps --no-build-isolation -e .
	$(PYTHON) -m bigkern gpu $(GPU_ARGS)

report: install  ## rewrite the generated tables: README.md, csrc/cuda/RESOURCES.md
	$(RUN) -m bigkern report
	$(RUN) -m bigkern compile --arch sm_80,sm_90a,sm_100a --report csrc/cuda/RESOURCES.md

lint: install  ## ruff and clang-format, checking only
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(FORMATTED)

format: install  ## ruff and clang-format, in place
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(FORMATTED)

clean:  ## removes what the targets above made
	rm -rf $(VENV) build runs *.egg-info bigkern/_C/*.so bigkern/_C/build.json
