# eigentrace: `make help` explains every target. All of them reuse what is built.
BUILD    ?= build
# make test CUDA=OFF: leave the GPU code out even where nvcc is installed
CUDA     ?= AUTO
# make CUDA_ARCHS="80;90": GPUs to build for; empty: this machine's own, else sm_90
CUDA_ARCHS ?=
# make test SANITIZE=address,undefined: a build of its own, in build-sanitize
SANITIZE ?=
PREFIX   ?= /usr/local
PORTABLE ?= OFF
LAUNCHER := $(shell command -v ccache 2>/dev/null)

ifneq ($(SANITIZE),)
  BUILD := build-sanitize
  CUDA := OFF
endif
CONFIGURE = cmake -S . -B $(BUILD) -G Ninja -DEIGENTRACE_CUDA=$(CUDA) "-DEIGENTRACE_CUDA_ARCHS=$(CUDA_ARCHS)" \
            "-DEIGENTRACE_SANITIZE=$(SANITIZE)" -DEIGENTRACE_PORTABLE=$(PORTABLE) -DCMAKE_INSTALL_PREFIX=$(PREFIX) \
            $(if $(LAUNCHER),-DCMAKE_CXX_COMPILER_LAUNCHER=$(LAUNCHER) -DCMAKE_CUDA_COMPILER_LAUNCHER=$(LAUNCHER))

.DEFAULT_GOAL := help
.PHONY: help setup configure build demo test test-all test-emulated sanitize-gpu bundle bench check format install clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: CUDA=OFF  CUDA_ARCHS=\"80;90\"  SANITIZE=address,undefined  PREFIX=/usr/local"

setup: ## install the Debian packages that are missing (with sudo when not root); elsewhere: list them and stop
	@tools/setup.sh

configure: setup
	@$(CONFIGURE) > $(BUILD)-configure.log 2>&1 || { cat $(BUILD)-configure.log; exit 1; }

build: configure ## the program, build/eigentrace
	@cmake --build $(BUILD) --target eigentrace

demo: build ## train three attention models on a small MQAR, read their eigenvalues, write demo/report.html
	@tools/demo.sh $(BUILD)/eigentrace demo

test: configure ## build and run all tests (under 5 minutes)
	@cmake --build $(BUILD)
	@$(BUILD)/eigentrace_tests

test-all: configure ## the slow cases as well
	@cmake --build $(BUILD)
	@$(BUILD)/eigentrace_tests --no-skip

test-emulated: setup ## every CUDA kernel on the CPU (tests/simt), for machines without a GPU
	@$(MAKE) --no-print-directory BUILD=build-emulated CUDA=EMULATE configure
	@cmake --build build-emulated --target eigentrace_tests
	@build-emulated/eigentrace_tests -tc="cuda*,train step*,graph*"
	@EIGENTRACE_EMULATE_WGMMA=1 build-emulated/eigentrace_tests -tc="cuda*,train step*"

sanitize-gpu: configure ## every GPU test under compute-sanitizer's memcheck and racecheck
	@cmake --build $(BUILD) --target eigentrace_tests
	@PATH=$$PATH:/usr/local/cuda/bin tools/sanitize_gpu.sh $(BUILD)/eigentrace_tests

bundle: ## dist/eigentrace.tar.xz: program, its libraries and experiments, to run on other machines
	@$(MAKE) --no-print-directory BUILD=build-bundle PORTABLE=ON build
	@tools/bundle.sh build-bundle dist

bench: build ## time, GB/s and GFLOP/s of kernels and training steps against this machine's ceilings
	@$(BUILD)/eigentrace bench

check: ## format, 500-line guard, clang-tidy on changed files (ALL=1: on all), README commands
	@tools/check.sh $(if $(ALL),--all)

format: ## rewrite the sources in the house's format
	@git ls-files '*.h' '*.cpp' '*.cu' | xargs clang-format -i

install: configure ## program, libraries, headers and CMake targets into PREFIX
	@cmake --build $(BUILD)
	@cmake --install $(BUILD)

clean: ## remove the build
	@rm -rf $(BUILD) $(BUILD)-configure.log
