# `make demo` and `make test` need Python >= 3.10 with venv and a C++20 compiler. Whatever else they
# use, CMake and ninja included, is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

BIN := $(abspath $(VENV))/bin
PRESET ?= release
# Where no GPU would run it, nobody waits for CUDA code to compile. CUDA=ON compiles it anyway.
CUDA ?= $(if $(shell nvidia-smi -L 2> /dev/null | grep '^GPU '),AUTO,OFF)
# Compute capabilities for `make cuda`, for example "80 90a"; empty = see README.md.
CUDA_ARCHS ?=
# With build isolation every install would compile everything again.
INSTALL = $(BIN)/pip install --quiet --no-build-isolation -C build-dir=build/python \
	-C cmake.define.TREADLE_CUDA=$(CUDA)
PACKAGE_FILES := pyproject.toml CMakeLists.txt README.md \
	$(shell find cmake cpp cuda python third_party -type f ! -path '*/__pycache__/*' ! -name '.*')

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(JOBS)
# CMake and ninja of the virtual environment come first; its Python is the one CMake finds.
export PATH := $(BIN):$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))

.PHONY: demo install test test-cpp test-python test-install cuda lint format typecheck asan tsan tidy \
	fuzz clean distclean help

help:
	@echo "make demo     install into $(VENV) and run a chat with the bundled model"
	@echo "make test     install what the tests need, then run all of them"
	@echo "make cuda     C++ library with the CUDA backend, and its tests (needs nvcc; CUDA_ARCHS=90a)"
	@echo "make lint     formatting, ruff, include directions"
	@echo "make typecheck  mypy --strict"
	@echo "make asan     C++ tests under the address and undefined behaviour sanitizers"
	@echo "make tsan     C++ tests under the thread sanitizer"
	@echo "make tidy     clang-tidy over the library"
	@echo "make fuzz     short runs of the fuzz targets (needs clang++)"
	@echo "make format   rewrite sources in the project's style"
	@echo "make clean    remove build outputs (distclean: $(VENV) too)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Treadle needs Python >= 3.10")'
	$(PYTHON) -m venv $(VENV)

# What builds the package and the C++ tests.
$(VENV)/.build-tools: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --upgrade 'pip>=23'
	$(BIN)/pip install --quiet 'cmake>=3.25' ninja 'scikit-build-core>=0.10' 'pybind11>=2.12' \
		'nlohmann-json>=3.11'
	@touch $@

# What the CUDA backend is built with: nothing where there is no nvcc, cuBLASLt's header where the
# toolkit lacks it.
$(VENV)/.cuda-tools: tools/build_backend.py $(VENV)/.build-tools
	$(BIN)/python tools/build_backend.py | xargs --no-run-if-empty $(BIN)/pip install --quiet
	@touch $@

$(VENV)/.installed: $(VENV)/.build-tools $(if $(filter OFF,$(CUDA)),,$(VENV)/.cuda-tools) \
		$(PACKAGE_FILES)
	$(INSTALL) .
	@touch $@

$(VENV)/.test-tools: pyproject.toml | $(VENV)/.installed
	$(INSTALL) '.[test]'
	@touch $@

$(VENV)/.dev-tools: pyproject.toml | $(VENV)/.installed
	$(INSTALL) '.[dev]'
	@touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	@$(BIN)/python examples/python/demo.py

# C++ first; the run ends with pytest's summary.
test: test-cpp test-python

# Where nothing provides GoogleTest, CMake downloads it; in a container of Debian's kind the package
# is at hand.
$(VENV)/.googletest: | $(BIN)/python
	@if [ ! -e /usr/include/gtest/gtest.h ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; \
	then apt-get update -qq; apt-get install -y -qq --no-install-recommends libgtest-dev || true; fi
	@touch $@

test-cpp: $(VENV)/.build-tools $(VENV)/.googletest
	cmake --preset $(PRESET)
	cmake --build --preset $(PRESET)
	ctest --preset $(PRESET) -j $(JOBS)

cuda: $(VENV)/.build-tools $(VENV)/.cuda-tools $(VENV)/.googletest
	cmake --preset cuda $(if $(CUDA_ARCHS),-D 'TREADLE_CUDA_ARCHS=$(subst $() ,;,$(strip $(CUDA_ARCHS)))')
	cmake --build --preset cuda
	ctest --preset cuda -j $(JOBS)

test-python: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest --junitxml=build/reports/pytest.xml

test-install: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest -m install

lint: $(VENV)/.dev-tools
	ruff check .
	ruff format --check .
	git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror
	python tools/check_includes.py

format: $(VENV)/.dev-tools
	ruff check --fix .
	ruff format .
	git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i

typecheck: $(VENV)/.dev-tools
	mypy

asan tsan tidy fuzz: $(VENV)/.build-tools $(VENV)/.googletest
	cmake --workflow --preset $@

clean:
	rm -rf build dist $(VENV)/.installed
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
