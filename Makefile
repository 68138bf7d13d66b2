# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= demo
# Test files run in parallel; each stays in one process.
WORKERS ?= 2

.PHONY: demo test check app bench clean

demo: .venv/.installed
	$(BIN)/dermlens demo --out $(OUT)

test: .venv/.installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'dermlens needs Python 3.11 or newer; run make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

.venv/.installed-test: .venv/.installed requirements-test.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
# Its pins refuse the TensorFlow used here, with which it works; without it one comparison is skipped.
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps xplique==2.0.2
	touch $@

clean:
	rm -rf .venv build dist
