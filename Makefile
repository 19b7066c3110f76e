# Everything sets itself up: the first call makes .venv from requirements.lock, later ones only if the lock changed.
# `make` alone lists what there is. PYTHON is the interpreter that .venv is made with, 3.11 or later.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: help report test lab lint bench reference site lock clean filter

help:  ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

report: $(READY)  ## run what changed in the quick profile, compile reports/quick/index.html
	@$(BIN)/delib report --profile quick

# A file's tests stay in one process: they share what its fixtures made.
test: $(READY)  ## run the tests, a process for each core
	@$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lab: $(READY)  ## open JupyterLab on the notebooks
	@$(BIN)/jupyter lab notebooks

lint: $(READY)  ## ruff on code and notebooks, mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Each benchmark prints one JSON document, which is kept only if it came out whole.
bench: $(READY)  ## run benchmarks/*.py, write reports/bench/*.json
	@mkdir -p reports/bench
	@for script in $(filter-out benchmarks/opencv.py benchmarks/least_squares.py,$(wildcard benchmarks/*.py)); do \
	  out=reports/bench/$$(basename $$script .py).json; \
	  echo $$out; $(BIN)/python $$script > $$out.part && mv $$out.part $$out || { rm -f $$out.part; exit 1; }; \
	done

reference: report  ## take the quick report over as reports/reference, and its numbers into the README
	@$(BIN)/delib reference

site: $(READY)  ## site/: the reference report, the documents, and a page that runs Python, for any static host
	@$(BIN)/delib site

lock: $(READY)  ## resolve pyproject.toml's bounds anew into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --upgrade --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --quiet --output-file requirements.lock

clean:  ## remove .venv, caches and every report but the reference; data/ stays
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find reports -mindepth 1 -maxdepth 1 -type d ! -name reference -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(MAKE) --no-print-directory filter
	@touch $@

# The filter that .gitattributes names. Without it, as in a tarball or in a clone that `make` never saw, nothing fails.
LEFT := $(addprefix metadata.language_info.,codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version)
filter:
	@if [ -e .git ]; then git config filter.nbstripout.clean \
	  '$(BIN)/nbstripout --keep-id --extra-keys "metadata.papermill metadata.widgets $(LEFT)"'; fi
