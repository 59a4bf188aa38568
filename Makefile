# Every target sets up what it needs. The common ones:
#   make demo     Label Studio with a project and boxes, to look at
#   make serve    the Label Studio ML backend on http://127.0.0.1:9090
#   make test     the tests;  make e2e adds a real Label Studio
# Variables: MODEL HOST PORT DEVICE (serve), TORCH (a pip requirement, e.g. 'torch==2.13.0'), PYTHON, VENV.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.10
MODEL ?= nano
HOST ?= 127.0.0.1
PORT ?= 9090
DEVICE ?= auto
# Photos that cannot be redistributed (folders coco128 and bccd); what needs them is not measured without.
BENCH_DATA ?= $(if $(GROUNDINGML_TEST_DATA),$(GROUNDINGML_TEST_DATA)/data)
# An unpacked wheel of torchvision, the peer of deformable convolution: see benchmarks/deform_conv.py.
TORCHVISION ?= torchvision

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# A stamp for each choice of PyTorch: asking for another one installs again, asking for the same one does nothing.
TORCH_ID := $(shell printf '%s' '$(TORCH)' | cksum | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed-$(TORCH_ID)
BUILD_INPUTS := pyproject.toml setup.py $(shell find csrc -type f)

.PHONY: serve demo test e2e ray proof lint format bench quality check-cuda wheel clean help
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "groundingml needs Python 3.10 or newer; choose one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "no venv module: install it (Debian, Ubuntu: apt install python3-venv)"; exit 1; }

$(INSTALLED): $(BUILD_INPUTS) | $(VENV)/bin/python
	@rm -f $(VENV)/.installed-* $(VENV)/.with-*
	$(PIP) install --quiet '$(TORCH)' 'setuptools>=77' wheel ninja 'pybind11>=2.12'
	$(PIP) install --quiet --no-build-isolation --editable '.[serve]'
	@touch $@

$(VENV)/.with-%: $(INSTALLED)
	$(PIP) install --quiet --no-build-isolation --editable '.[serve,$*]'
	@touch $@

serve: $(INSTALLED)  ## serve the ML backend (MODEL=nano HOST=127.0.0.1 PORT=9090 DEVICE=auto)
	$(BIN)/groundingml serve --model '$(MODEL)' --host '$(HOST)' --port '$(PORT)' --device '$(DEVICE)'

demo: $(INSTALLED)  ## Label Studio, the backend, and a project with photos and boxes, ready to look at
	$(BIN)/python examples/demo.py --model '$(MODEL)' --backend-port '$(PORT)'

test: $(VENV)/.with-test  ## run the tests (TESTS='tests/ops -k grad' for some)
	$(BIN)/python -m pytest -m 'not e2e' $(TESTS)

e2e: $(VENV)/.with-test  ## run the tests against a real Label Studio, in its own environment
	$(BIN)/python tests/e2e/label_studio_env.py
	$(BIN)/python -m pytest -m 'e2e and not proof' $(TESTS)

ray: $(VENV)/.with-test $(VENV)/.with-ray  ## run the tests of labelling on a Ray cluster (a local one)
	$(BIN)/python -m pytest tests/inference/test_ray_engine.py

proof: $(VENV)/.with-test  ## prove that corrections teach: minutes of real training (GROUNDINGML_TEST_DATA)
	$(BIN)/python tests/e2e/label_studio_env.py
	$(BIN)/python -m pytest -m proof -s $(TESTS)

lint: $(VENV)/.with-lint  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.with-lint  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check-cuda:  ## compile the CUDA kernels; fail where one uses stack or spills registers (nvcc, no GPU)
	$(PYTHON) csrc/msda/cuda/check_resources.py

$(VENV)/.with-peers: $(VENV)/.with-bench
	# From source: its binary is tied to one PyTorch.
	-$(PIP) install --quiet --no-build-isolation --no-deps --no-binary torch-ms-deform-attn torch-ms-deform-attn==0.1.1
	@touch $@

bench: $(VENV)/.with-peers  ## measure speed on this CPU in 25 minutes, write benchmarks/README.md
	$(BIN)/python benchmarks/cores.py
	$(BIN)/python benchmarks/ops.py --repetitions 3
	test ! -d '$(TORCHVISION)' || $(BIN)/python benchmarks/deform_conv.py --torchvision '$(TORCHVISION)'
	$(BIN)/python benchmarks/end_to_end.py --repetitions 2
	$(BIN)/python benchmarks/peers.py --repetitions 2 --sizes 480x640 800x1333
	$(BIN)/python benchmarks/edge.py
	$(BIN)/python benchmarks/bulk.py --rounds 3
	test ! -d '$(BENCH_DATA)/bccd' || $(BIN)/python benchmarks/webhooks.py --data '$(BENCH_DATA)'
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/report.py

quality: $(VENV)/.with-bench  ## measure the embedded model and what corrections teach it (BENCH_DATA=folder)
	@test -d '$(BENCH_DATA)/coco128' || { echo "BENCH_DATA=$(BENCH_DATA) has no folder coco128 of photos"; exit 1; }
	$(BIN)/python benchmarks/embedded_model.py --data '$(BENCH_DATA)'
	$(BIN)/python benchmarks/learning.py --data '$(BENCH_DATA)'
	$(BIN)/python benchmarks/report.py

wheel: $(INSTALLED)  ## build dist/groundingml-*.whl
	$(PIP) wheel --no-build-isolation --no-deps --wheel-dir dist .

clean:  ## remove what was built, not the environment
	rm -rf build dist *.egg-info groundingml/ops/*.so
