# SPDX-License-Identifier: Apache-2.0
# Every target sets up .venv by itself, with plain pip, and again only when a requirement changed.

PYTHON ?= python3
PYTEST ?= -n auto

TARGETS := cuda_sm90 cuda_sm100 rocm_gfx942 rocm_gfx950
LEVELS  := -l contract -l compiled -l interpreted
# What `make evidence` examines: some operators, the others stay as recorded; or all. A target where
# none of them has a body runs no case above contract, which is an error: LEVELS="-l contract" EMULATED=
OPERATORS :=
ONLY    = $(addprefix -o ,$(OPERATORS))
# Of these archkey has an emulator.
EMULATED := $(TARGETS)

BIN   := .venv/bin
READY := .venv/.ready
NEEDS := requirements-dev.txt constraints.txt core/pyproject.toml $(wildcard plugins/*/pyproject.toml)

.PHONY: help demo test slow gpu evidence performance newest fla lint format clean

help:
	@echo "make demo     run every operator on this machine against the reference"
	@echo "make test     all tests but the slow ones; PYTEST='-k rmsnorm' passes options"
	@echo "make slow     the slow ones"
	@echo "make gpu      the tests that need a GPU, compiled instead of interpreted"
	@echo "make evidence the exam of all targets, its records and the README's table; hours"
	@echo "              OPERATORS='rmsnorm mla_decode': of these alone"
	@echo "make performance  the README's times, from plugins/*/results; measures nothing"
	@echo "make newest   the kernels with the newest Triton, in a venv of its own"
	@echo "make fla      flash-linear-attention's own layer on archkey, in a venv of its own"
	@echo "make lint     ruff and mypy"
	@echo "make format   let ruff rewrite the files"
	@echo "make clean    remove .venv and all caches"

demo: $(READY)
	$(BIN)/archkey demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST)

slow: $(READY)
	$(BIN)/python -m pytest -m slow $(PYTEST)

gpu: $(READY)
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu

# Level device stays as it was recorded, unless this machine has the card.
evidence: $(READY)
	for target in $(TARGETS); do \
	  case " $(EMULATED) " in *" $$target "*) more="-l emulated";; *) more=;; esac; \
	  $(BIN)/archkey check $$target $(LEVELS) $$more $(ONLY) \
	    --output plugins/$$target/src/archkey_$$target/evidence.json || exit 1; \
	done
	$(BIN)/archkey check cpu $(ONLY) --output core/src/archkey/evidence.json
	$(BIN)/python -m tests.packaging.readme_coverage

# From documents that `archkey bench --quick` wrote on the card.
performance: $(READY)
	$(BIN)/python -m tests.packaging.readme_performance

# The constraints pin one Triton; users have others. torch's own requirement is overruled on purpose.
newest: $(READY)
	test -x .venv-newest/bin/python || cp -a .venv .venv-newest
	.venv-newest/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --upgrade triton
	.venv-newest/bin/python -m pytest $(PYTEST) tests/plugins tests/core/test_rmsnorm_body.py \
		tests/core/test_tuning.py tests/core/test_compilation.py tests/conformance/test_machine_code.py \
		tests/conformance/test_probes.py tests/emulation/test_whole_kernels.py tests/emulation/test_level.py \
		tests/emulation/test_ptx_kernels.py

# Where fla is installed transformers takes its kernels, on a CPU too, for models of other tests.
fla: $(READY)
	test -x .venv-fla/bin/python || cp -a .venv .venv-fla
	.venv-fla/bin/python -m pip install --disable-pip-version-check --quiet --no-deps -c constraints.txt \
		flash-linear-attention fla-core einops
	.venv-fla/bin/python -m pytest $(PYTEST) tests/integrations/test_fla.py \
		tests/integrations/test_fla_layers.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-newest .venv-fla .pytest_cache .ruff_cache .mypy_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): $(NEEDS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@
