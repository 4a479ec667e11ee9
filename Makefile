PYTHON ?= python3
SHELL := bash
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := runs/demo

# pip compiles nothing: what is imported is compiled once and kept, even where a container's setting forbids it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test check parity bench soak docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.venv: $(VENV)/installed ## The environment, made with PYTHON (3.11 or later) from constraints.txt

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { echo >&2 \
	  "error: '$(PYTHON)' is not Python 3.11 or later: name one that is, as in make PYTHON=python3.12 demo"; exit 1; }
	@echo "Making the environment in $(VENV)/: some gigabytes, a few minutes"
	@$(PYTHON) -m venv $(VENV)
	@set -o pipefail; $(RUN) -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]' | awk ' \
	  /^ *(Downloading|Using cached) / && !/metadata/ {sub(/.*(Downloading|Using cached) /, ""); sub(/.*\//, ""); print "  " $$0} \
	  /^Installing collected/ {print "  installing"} \
	  {fflush()}'
	@touch $@

demo: $(VENV)/installed ## Train on generated scenes, evaluate, and name a page to open
	$(RUN) -m wsss_afa.train +experiment=demo hydra.run.dir=$(DEMO)
	$(RUN) -m wsss_afa.evaluate ckpt=$(DEMO)/checkpoints/best.ckpt hydra.run.dir=$(DEMO)/evaluation
	@echo
	@echo "Open $(DEMO)/evaluation/report.html in a browser. What to look at:"
	@echo "  the scores    segmentation is what the network learned; CAM is where its classifier looks, and where it began"
	@echo "  the pictures  from left to right: image, CAM, refined label, propagated label, prediction, truth"
	@echo "  the worst     which of these steps goes wrong first; $(DEMO)/pictures shows how they grew in training"
	@echo "Next: wsss-afa predict ckpt=$(DEMO)/checkpoints/best.ckpt source=PHOTOS, after source $(VENV)/bin/activate"

test: $(VENV)/installed ## Run the tests, on all cores
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: $(VENV)/installed ## Check style, format and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

parity: $(VENV)/installed ## Compare with numbers of the authors' released program
	$(RUN) tests/parity.py tests/data/*.npz

bench: $(VENV)/installed ## Time a training step: its parts, the slow versions of them, its growth
	$(RUN) benchmarks/training_step.py
	$(RUN) benchmarks/scaling.py

soak: $(VENV)/installed ## Break training runs at random for some minutes (minutes=40)
	OMP_NUM_THREADS=1 $(RUN) tests/soak.py minutes=$(or $(minutes),40)

docs: $(VENV)/installed ## Build the site into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict
	@echo "site/index.html; to read while writing: NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve"

clean: ## Remove caches and builds; runs/ and .venv/ stay
	rm -rf dist site .pytest_cache .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
