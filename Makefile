# Each target sets itself up from a fresh clone: Python >= 3.10, a C compiler and make are enough.
#   make demo    train, prune, compile and measure; pictures and tables under build/demo/
#   make test    the whole test suite on all cores (WORKERS=n for fewer)
#   make faults  the long form of tests/faults: kills, full disks, bad peers, damaged files
#   make docs    every block and command of README and docs/, the slow ones too
#   make docs-site  the documentation as HTML under build/site/, API reference included
#   make lint    style, types and the import contracts
#   make coverage  the test suite with lines and branches counted; pages under build/coverage/
#   make golden  pins of the generated code written anew, to be reviewed as a diff
#   make bench   layers and networks against other engines; results under benchmarks/results/
#   make opencl-tools  PoCL and oclgrind, which run OpenCL on a CPU (`make test` does it too)
#   make torch-ends  the tests that touch torch, with the oldest and the newest one supported (10 GB)
#   make test-trainers  pruning inside Lightning, Hugging Face and timm, in .venv-trainers
#   make clean   remove everything that was built, the virtual environment included

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# One thread per library unless the caller says otherwise: the suite runs on small machines too, and
# thread pools of several libraries in one process slow each other down.
TEST_ENV := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TVM_NUM_THREADS=$${TVM_NUM_THREADS:-1}
BENCH_ARGS ?=
# Processes of `make test`: `make test WORKERS=1`. One more than there are cores, since tests of servers,
# kills and time limits wait for a third of the time. A file's tests stay together, since they share what
# its fixtures compiled; files go in order of collection, in which the slow ones do not come last.
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
WORKERS ?= $(shell expr $(CORES) + 1)
# A crash ends the run with its test's name: xdist waits for ever for the rest of a crashed file.
XDIST = -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0
TEST_ARGS ?=

# What runs ARM code here: cross compilers, the emulator and llvm-mca. Tests say what is missing.
ARM_COMMANDS := aarch64-linux-gnu-gcc arm-linux-gnueabihf-gcc qemu-aarch64 qemu-arm llvm-mca-19
ARM_PACKAGES := gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-arm-linux-gnueabihf \
  libc6-dev-armhf-cross qemu-user llvm-19

# OpenCL on the CPU: PoCL runs kernels, oclgrind counts what they execute and finds races.
OPENCL_COMMANDS := g++ oclgrind
OPENCL_HEADER := /usr/include/CL/cl.h
OPENCL_VENDORS := /etc/OpenCL/vendors
OPENCL_PACKAGES := g++ ocl-icd-libopencl1 opencl-headers pocl-opencl-icd oclgrind

# The range in pyproject.toml, and the tests whose code meets what changes between versions of torch.
TORCH_ENDS ?= 2.11.0 2.15.0
TORCH_TESTS := tests/test_operators.py tests/test_frontend.py tests/test_frontend_tensors.py \
  tests/test_torch_backend.py tests/pruning/test_carried.py tests/pruning/test_projection.py \
  tests/pruning/test_pruner.py tests/pruning/test_checkpoint.py tests/faults/test_exported_programs.py

.PHONY: help demo test coverage docs docs-site faults fault-tools lint golden bench clean check-tools \
  arm-tools opencl-tools torch-ends test-trainers

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.stamp-demo
	$(BIN)/python -m tvm_pattern.demo

test: $(VENV)/.stamp-dev arm-tools opencl-tools fault-tools
	$(TEST_ENV) $(BIN)/python -m pytest -q $(XDIST) $(TEST_ARGS)

# Slower than `make test`, and blind in the processes that tests start; its figures are no gate.
coverage: $(VENV)/.stamp-dev $(VENV)/.stamp-coverage arm-tools opencl-tools fault-tools
	COVERAGE_FILE=build/.coverage $(TEST_ENV) $(BIN)/python -m pytest -q $(XDIST) --cov --cov-branch \
	  --cov-report=term --cov-report=html $(TEST_ARGS)

faults: $(VENV)/.stamp-dev fault-tools
	TVM_PATTERN_FAULTS=long $(TEST_ENV) $(BIN)/python -m pytest -q $(XDIST) --timeout=2400 tests/faults \
	  $(TEST_ARGS)

docs: $(VENV)/.stamp-dev arm-tools
	TVM_PATTERN_DOCS=long $(TEST_ENV) $(BIN)/python -m pytest -q $(XDIST) tests/docs \
	  tests/test_examples.py $(TEST_ARGS)

# A warning is an error: a link that leads nowhere, a page that no list has, a name that is not there.
docs-site: $(VENV)/.stamp-docs
	$(TEST_ENV) $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site
	@echo "open build/site/index.html"

# The kill at every write needs strace; full disks are a tmpfs where root runs this.
fault-tools:
	@if command -v strace >/dev/null 2>&1; then exit 0; fi; echo "installing strace"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	if command -v apt-get >/dev/null 2>&1 && $$sudo true 2>/dev/null && $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends strace \
	    >/dev/null; then exit 0; fi; \
	echo "warning: could not install strace; the kills at every write will fail and say so. On" \
	  "Debian and Ubuntu: sudo apt-get install strace" >&2

arm-tools:
	@missing=; for tool in $(ARM_COMMANDS); do \
	  command -v $$tool >/dev/null 2>&1 || missing="$$missing $$tool"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	echo "installing what runs ARM code (missing:$$missing)"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	if command -v apt-get >/dev/null 2>&1 && $$sudo true 2>/dev/null && $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    $(ARM_PACKAGES) >/dev/null; then exit 0; fi; \
	echo "warning: could not install them; the tests of ARM code will fail and say so. On Debian 12" \
	  "and Ubuntu 24.04: sudo apt-get install $(ARM_PACKAGES)" >&2

opencl-tools:
	@missing=; for tool in $(OPENCL_COMMANDS); do \
	  command -v $$tool >/dev/null 2>&1 || missing="$$missing $$tool"; done; \
	[ -e "$(OPENCL_HEADER)" ] || missing="$$missing CL/cl.h"; \
	driver=; for file in $(OPENCL_VENDORS)/*.icd; do [ ! -e "$$file" ] || driver=$$file; done; \
	[ -n "$$driver" ] || missing="$$missing OpenCL-driver"; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	echo "installing what runs OpenCL on a CPU (missing:$$missing)"; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo="sudo -n"; \
	if command -v apt-get >/dev/null 2>&1 && $$sudo true 2>/dev/null && $$sudo apt-get update -qq && \
	  $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    $(OPENCL_PACKAGES) >/dev/null; then exit 0; fi; \
	echo "warning: could not install them; the tests of OpenCL will be skipped and say so. On Debian" \
	  "and Ubuntu: sudo apt-get install $(OPENCL_PACKAGES)" >&2

# pip's default torch brings CUDA along; where an index has CPU builds: TORCH_ENDS="2.15.0+cpu".
torch-ends: $(TORCH_ENDS:%=.venv-torch-%/.stamp)
	@set -e; for torch in $(TORCH_ENDS); do echo "torch $$torch"; \
	  $(TEST_ENV) .venv-torch-$$torch/bin/python -m pytest -q $(XDIST) $(TORCH_TESTS) $(TEST_ARGS); done

.venv-torch-%/.stamp: pyproject.toml constraints.txt | check-tools
	@echo "installing torch $* into .venv-torch-$* (gigabytes with CUDA)"
	@$(PYTHON) -m venv .venv-torch-$*
	@grep -v -E '^(torch|torchao|setuptools)==' constraints.txt > .venv-torch-$*/constraints.txt
	@.venv-torch-$*/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c .venv-torch-$*/constraints.txt 'torch==$*' -e '.[dev]'
	@touch $@

# TRAINERS_TORCH names builds that fit each other where pip's first choices do not.
# These packages are no dependencies, so `make test` skips what needs them; here that is a failure.
test-trainers: .venv-trainers/.stamp
	TVM_PATTERN_TRAINERS=1 $(TEST_ENV) .venv-trainers/bin/python -m pytest -q \
	  tests/pruning/test_trainers.py tests/pruning/test_train.py $(TEST_ARGS)

.venv-trainers/.stamp: pyproject.toml constraints.txt | check-tools
	@echo "installing the trainers into .venv-trainers (some minutes)"
	@$(PYTHON) -m venv .venv-trainers
	@.venv-trainers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  -e '.[dev,trainers]' $(TRAINERS_TORCH)
	@.venv-trainers/bin/python -c 'import torchvision' 2>/dev/null || { \
	  echo "error: torch and torchvision in .venv-trainers are not of one build. Where an index has CPU builds:" \
	  "make test-trainers TRAINERS_TORCH='torch==2.13.0+cpu torchvision==0.28.0+cpu'" >&2; exit 1; }
	@touch $@

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

golden: $(VENV)/.stamp-dev
	$(BIN)/python tests/golden.py --renew

bench: $(VENV)/.stamp-bench
	$(BIN)/python -m benchmarks.layers --json benchmarks/results/layers.json $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.networks --json benchmarks/results/networks.json $(BENCH_ARGS)

$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing tvm-pattern[$*] into $(VENV) (the first time takes some minutes)"
	$(PIP_INSTALL) -e '.[$*]'
	@touch $@

$(BIN)/python: | check-tools
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

check-tools:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "error: '$(PYTHON)' was not found. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: got $$($(PYTHON) --version 2>&1), expected Python 3.10 or newer. Name a newer one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: this Python cannot create virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@{ [ -n "$$CXX$$CC" ] || command -v g++ || command -v gcc || command -v clang || command -v cc; } >/dev/null 2>&1 || { \
	  echo "error: no C or C++ compiler was found; TVM links compiled models with it. On Debian and Ubuntu: apt-get install gcc libc6-dev" >&2; exit 1; }

clean:
	rm -rf $(VENV) .venv-torch-* .venv-trainers build *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache .cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
