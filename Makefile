# Slipway. `make demo` sets everything up and runs the main job; `make test` sets up and passes the tests.
PYTHON    ?= python3.11
MODEL     ?= demo
TARGET    ?= onnxruntime
PRECISION ?=
KV_DTYPE  ?=
COMPUTE_CAPABILITY ?=
OUT       ?= build
GPU_PYTHON ?= python3

COMPILE := .venv/bin
SERVE   := .venv-serve/bin
SLIPWAY := $(COMPILE)/slipway
NAME     = $$($(COMPILE)/python -c "import sys; from pipeline.sources.names import model_name; print(model_name(sys.argv[1]))" "$(MODEL)")
BUILD    = --target $(TARGET) $(if $(PRECISION),--precision $(PRECISION)) $(if $(KV_DTYPE),--kv-dtype $(KV_DTYPE)) \
           $(foreach chip,$(COMPUTE_CAPABILITY),--compute-capability $(chip)) --output "$(OUT)/$(NAME)"
PIP     := -m pip install -q --disable-pip-version-check --no-deps
PYTEST  := OMP_NUM_THREADS=1 $(COMPILE)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-wide lint types unit runtime-tests engine serve plugins gpu-check environments train-demo lock clean

help:
	@echo "make demo                      two environments, two engines, a real server, a streamed completion"
	@echo "make test                      lint, types and every test, the real server included"
	@echo "make engine MODEL=...          all stages into OUT/<model>/   [TARGET=$(TARGET)] [PRECISION=fp32] [KV_DTYPE=float32] [OUT=$(OUT)]"
	@echo "make serve MODEL=...           builds if needed and serves in the foreground until Ctrl-C"
	@echo "make plugins                   the operators of plugins/, compiled for CPUs and GPUs   [ORT_INCLUDE=...] [ARCH=90a,120a] [TENSORRT_INCLUDE=...]"
	@echo "make gpu-check                 checks and measures the CUDA kernels and the engine loop on the GPU that is here   [GPU_PYTHON=$(GPU_PYTHON)]"
	@echo "MODEL: demo, minilm, a folder in Hugging Face format, org/name[@revision], package.module:function, a .pt2 or .onnx file"
	@echo "More: docs/sources.md, $(SLIPWAY) --help"

# An environment is ready when every package of its lock file is in it; a changed lock file brings it up to date.
.venv/ready: requirements/compile.lock requirements/torch-cpu.lock requirements/torch-cuda.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 with venv, or name one: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up .venv (compile side) ..."
	@test -x $(COMPILE)/python || $(PYTHON) -m venv .venv
	@$(COMPILE)/python $(PIP) --require-hashes -r requirements/compile.lock
	@$(COMPILE)/python $(PIP) --require-hashes -r requirements/torch-cpu.lock 2>/dev/null || \
	    { echo "pip sees no CPU build of PyTorch here: installing the CUDA build and its libraries (several GB) ..."; \
	      $(COMPILE)/python $(PIP) --require-hashes -r requirements/torch-cuda.lock; }
	@PYTHONWARNINGS=ignore $(COMPILE)/python $(PIP) --no-build-isolation -e .
	@touch $@

.venv-serve/ready: requirements/serve.lock pipeline/serving_environment.py pipeline/supervise.py
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 with venv, or name one: make PYTHON=/path/to/python3.11"; exit 2; }
	@echo "Setting up .venv-serve (tritonserver) ..."
	@test -x $(SERVE)/python || $(PYTHON) -m venv .venv-serve
	@$(SERVE)/python $(PIP) --require-hashes -r requirements/serve.lock
	@$(SERVE)/python pipeline/serving_environment.py
	@touch $@

environments: .venv/ready .venv-serve/ready

demo: environments
	@$(SLIPWAY) demo --output $(OUT)

engine: .venv/ready
	@$(SLIPWAY) build "$(MODEL)" $(BUILD)

serve: environments
	@$(SLIPWAY) serve "$(MODEL)" $(BUILD)

# ORT_INCLUDE=DIR: check the C interface against ONNX Runtime's own headers in DIR. ARCH=90a: CUDA kernels for one chip.
# TENSORRT_INCLUDE=DIR: TensorRT's plugins too, compiled with its headers in DIR.
plugins: .venv/ready
	@$(COMPILE)/python -m plugins.cpu.build $(if $(ORT_INCLUDE),--ort-include "$(ORT_INCLUDE)")
	@$(COMPILE)/python -m plugins.cuda.build $(if $(ARCH),--arch "$(ARCH)")
	@$(if $(TENSORRT_INCLUDE),$(COMPILE)/python -m plugins.tensorrt.build --include "$(TENSORRT_INCLUDE)")

# Needs nvcc and a Python with a CUDA build of torch; no environment of ours. At most 8 minutes. GPU_CHECK: more options,
# such as "--operators kv_write --no-bench --no-engines" or, where there is no git, "--commit NAME".
gpu-check:
	@$(GPU_PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "$(GPU_PYTHON) is not a Python of 3.11 or newer; name one: make gpu-check GPU_PYTHON=..."; exit 2; }
	@$(GPU_PYTHON) -m plugins.cuda.check $(GPU_CHECK)

test: environments lint types runtime-tests unit

lint: .venv/ready
	@$(COMPILE)/ruff check .
	@$(COMPILE)/ruff format --check .

types: .venv/ready
	@$(COMPILE)/mypy

# The runtime also runs where the server is, on another numpy; its tests run there too.
runtime-tests: .venv-serve/ready
	@$(SERVE)/python -m pytest -q tests/runtime

unit: environments
	@$(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder -m "not wide"

test-wide: environments
	@$(PYTEST) -n 2 --dist load -m wide

# An hour and a half on one core, resumable; needs npm, apt-get and dpkg-deb for the text.
train-demo: .venv/ready
	@$(COMPILE)/python -m demo.corpus
	@$(COMPILE)/python -m demo.train
	@$(COMPILE)/python -m demo.publish

lock:
	@$(PYTHON) requirements/lock.py

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
