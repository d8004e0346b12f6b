# All set-up on a machine with Python 3.11 and nothing else: `make demo`, `make test`.
# torch: constraints.txt names the version; for the CPU build where your index serves another one by default, say
#   make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
BIN := .venv/bin
BUNDLE := bundles/brain_mri_cam_segmentation
DEMO := demo
PHANTOMS := --modalities T1,T1c,FLAIR
RUN := $(BIN)/python -W ignore::DeprecationWarning -W ignore::FutureWarning -m monai.bundle run --bundle_root $(BUNDLE) --logging_file $(BUNDLE)/configs/logging.conf

.PHONY: setup demo test test-slow check wheel bundles numbers docs notebooks clean

setup: .venv/.installed

.venv/.installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable ".[dev]"
	touch $@

# Phantom studies -> training on their image-level labels -> masks, metrics and report of unseen studies.
demo: setup
	$(BIN)/monai-wsss phantom $(PHANTOMS) --out $(DEMO)/phantoms
	$(RUN) --config_file $(BUNDLE)/configs/train.json \
		--dataset_dir $(DEMO)/phantoms --output_dir $(DEMO)/training
	$(RUN) --config_file "['$(BUNDLE)/configs/train.json','$(BUNDLE)/configs/evaluate.json']" \
		--dataset_dir $(DEMO)/phantoms --ckpt_dir $(DEMO)/training --split test --output_dir $(DEMO)/results
	$(BIN)/monai-wsss report --run $(DEMO)/results

# Two processes on two cores: a thread each, since more would wait for one another.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" --cov --cov-report=term:skip-covered

test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wheel and sdist, tried in an empty environment.
wheel:
	PYTHON=$(PYTHON) PIP_FLAGS="$(PIP_FLAGS)" .ci/wheel

# What all bundles have in common, from bundles/source/.
bundles: setup
	$(BIN)/python bundles/generate.py

# Tables and numbers in the documents, from the rows in docs/results/runs.
numbers: setup
	$(BIN)/python docs/results/generate.py

# The documentation site, build/site/index.html. It ends with an error where a link or a reference leads nowhere.
docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The tutorials as notebooks, beside their scripts.
notebooks: .venv/.docs
	$(BIN)/jupytext --to ipynb tutorials/*.py

.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install $(PIP_FLAGS) --constraint constraints.txt --editable ".[dev,docs]"
	touch $@

clean:
	rm -rf build/site tutorials/*.ipynb demo demo_cmer demo_bmp demo_gland demo_skin demo_cosa demo_coingan demo_chest $(DEMO) bundles/*/eval bundles/*/sample_data
