# Everything runs in .venv, which the first target that needs it makes.
SHELL := bash
.SHELLFLAGS := -eo pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
# One line that counts, in place of pip's pages.
COUNTED := | awk '/^Collecting/ { printf "\r  %d packages found", ++n; fflush() } /^Installing/ { printf ", installing them\n"; fflush() }'
OUT ?= demo
# Test files run in parallel, each in one process, in order: else those of few long tests would come last, alone.
WORKERS ?= 3

.PHONY: demo app test check docs wheel bench clean

demo: .venv/.installed
	$(BIN)/dermlens demo --out $(OUT)

app: .venv/.installed
	$(BIN)/dermlens app

test: .venv/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/.installed-test
	$(PIP) --quiet -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Builds wheel and sdist, installs the wheel into an empty environment and uses it in another folder.
wheel:
	PYTHON=$(PYTHON) .ci/wheel

# On a machine that does nothing else; takes hours. BUNDLE and DATA: a trained model and its data set.
BENCH := $(if $(BUNDLE),--bundle $(BUNDLE)) $(if $(DATA),--data $(DATA))
INT8 := $(if $(BUNDLE),--scorer int8)
bench: .venv/.installed-test
	$(BIN)/python benchmarks/receptive_fields.py
	$(BIN)/python benchmarks/folding.py $(BENCH) --publish
	$(BIN)/python benchmarks/training.py $(BENCH) --publish
	$(BIN)/python benchmarks/settings.py $(BENCH) --publish
	$(BIN)/python benchmarks/memory.py $(BENCH) --publish
	$(BIN)/python benchmarks/explainers.py --batch-size 32 --publish
	$(if $(and $(BUNDLE),$(DATA)),$(BIN)/dermlens scorer $(BUNDLE) $(DATA) --n 100)
	$(BIN)/python benchmarks/shapley.py $(BENCH) $(INT8)
	$(BIN)/python benchmarks/peers.py $(BENCH)
	$(if $(DATA),$(BIN)/python benchmarks/defaults.py $(BENCH))
	$(if $(DATA),$(BIN)/python benchmarks/occlusion_patches.py $(BENCH))
	$(BIN)/python benchmarks/curves.py $(BENCH) $(INT8)

.venv/.installed: pyproject.toml requirements.txt
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and 'dermlens needs Python 3.11, 3.12 or 3.13; run make PYTHON=python3.12 ...')"
	@echo "Installing into .venv: one to two minutes, about 700 MB"
	@$(PYTHON) -m venv .venv
	@$(PIP) -r requirements.txt $(COUNTED)
	@$(PIP) --quiet --no-deps -e .
	@touch $@

.venv/.installed-test: .venv/.installed requirements-test.txt
	@echo "Installing what tests and checks need"
	@$(PIP) -r requirements-test.txt $(COUNTED)
# Its pins refuse the TensorFlow used here, with which it works; without it one comparison is skipped.
	-@$(PIP) --quiet --no-deps xplique==2.0.2
	@touch $@

clean:
	rm -rf .venv build dist site
