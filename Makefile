# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=
SWEEP  ?= bp_vs_dtp
RUNS   ?= multirun/$(SWEEP)
RUN    ?= last
JOBS   ?= 2
REV    ?= HEAD
export PIP_DISABLE_PIP_VERSION_CHECK = 1
CPU    ?=
ifneq ($(CPU),)  # wheels without CUDA's libraries: make train CPU=1
export PIP_EXTRA_INDEX_URL = https://download.pytorch.org/whl/cpu
SIZE := below 2 GB on disk
else
SIZE := about 6 GB on disk on Linux, 4 of them CUDA's libraries; make ... CPU=1 leaves those out
endif

.DEFAULT_GOAL := help
LOCKED ?=
ifneq ($(LOCKED),)  # the versions that the suite ran with, each file by its hash: make install LOCKED=1
install = $(BIN)/python -m pip install --require-hashes --requirement locks/$(1).txt && \
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
else
install = $(BIN)/python -m pip install --editable '$(2)'
endif
EXTRAS := test dashboard joblib slurm timm huggingface search docs lint  # ray, which needs other versions, is not locked
ROW    ?=
EPOCHS ?=
SEED   ?=

.PHONY: help install train evaluate sweep report reproduce reproduction-page encoders-page wandb-sweeps export board dashboard docs test test-faults test-contracts test-wheel test-oldest wheel errors audit lock bench same-numbers lint format hooks clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## the environment; by locks/, versions and hashes, in a new one: make install LOCKED=1 VENV=.venv-locked

train: $(VENV)/.installed ## train and evaluate: make train ARGS="learner=bp loss=simclr trainer.max_epochs=2"
	$(BIN)/dtp train loss=hinge learner=dtp $(ARGS)

evaluate: $(VENV)/.installed ## evaluate a run again: make evaluate RUN=last ARGS="dataset=cifar10"
	$(BIN)/dtp evaluate "$(RUN)" $(ARGS)

sweep: $(VENV)/.installed ## a comparison from sweeps/, safe to interrupt: make sweep SWEEP=rules ARGS="seed=0,1"
	$(BIN)/dtp sweep $(SWEEP) $(ARGS)

report: $(VENV)/.installed ## table, statistics and page of finished runs: make report RUNS=multirun/bp_vs_dtp
	$(BIN)/dtp report $(RUNS) --html report.html

reproduce: $(VENV)/.installed ## a row of Table 1, from nothing to its line: make reproduce ROW=table1/bp EPOCHS=10 SEED=0; lists them without ROW
	$(BIN)/python benchmarks/reproduce.py $(ROW) $(if $(EPOCHS),--epochs $(EPOCHS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

reproduction-page: $(VENV)/.installed ## write the tables of docs/reproduction.md from results/
	$(BIN)/python benchmarks/reproduction.py

encoders-page: $(VENV)/.installed ## write the table of docs/encoders.md: probes the encoders that come with the package, or ARGS=NAME
	$(BIN)/python benchmarks/encoders.py $(ARGS)

wandb-sweeps: $(VENV)/.installed ## write sweeps/wandb/ from the sweeps in sweeps/
	$(BIN)/python benchmarks/wandb_sweeps.py

export: $(VENV)/.installed ## a run's encoder as safetensors with a card: make export RUN=last
	$(BIN)/dtp export "$(RUN)" $(ARGS)

board: report ## the same page, and W&B's viewer in this terminal; no account needed
	@$(BIN)/dtp board $(RUNS) --page report.html

dashboard: $(VENV)/.installed-dashboard ## uploaded runs as a W&B workspace: make dashboard ENTITY=me PROJECT=dtp-lightning
	@$(BIN)/dtp dashboard $(RUNS) --entity "$(ENTITY)" --project "$(PROJECT)"

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.installed-docs ## this documentation as a site: open site/index.html; reads no network
	$(BIN)/python -m mkdocs build --strict

# small networks: more threads than one wait for each other longer than they compute, where other programs run
test test-faults test-contracts: export OMP_NUM_THREADS = 1
test test-faults test-contracts: export OMP_WAIT_POLICY = PASSIVE

test: $(VENV)/.installed-test ## the test suite, without what takes many minutes, on JOBS cores: make test ARGS="-k golden"
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-faults: $(VENV)/.installed-test ## what a run survives: signals, full disks, divergence, W&B's failures, SLURM, 2,000 epochs; writes docs/guides/resume.md
	FAULTS_TABLE=docs/guides/resume.md $(BIN)/python -m pytest -m faults -s $(ARGS)

test-contracts: $(VENV)/.installed-test ## a step of every rule on every model by every objective, minutes
	$(BIN)/python -m pytest -m contracts --numprocesses $(JOBS) --dist worksteal $(ARGS)

test-wheel: $(VENV)/.installed-test ## builds the wheel, installs it elsewhere, uses it in an empty folder; needs a registry
	$(BIN)/python -m pytest -m wheel -s $(ARGS)

test-oldest: OLDEST := $(VENV)-oldest
test-oldest: $(BIN)/python ## the suite's core with the oldest versions that pyproject.toml allows; 6 GB, deleted afterwards
	$(BIN)/python -m pip install --quiet 'uv>=0.9,<1'
	$(BIN)/python -m venv $(OLDEST)
	$(BIN)/uv pip compile --quiet pyproject.toml --extra test --resolution lowest-direct --python $(OLDEST)/bin/python -o $(OLDEST)/oldest.txt
	$(BIN)/uv pip install --python $(OLDEST)/bin/python -r $(OLDEST)/oldest.txt
	$(BIN)/uv pip install --python $(OLDEST)/bin/python --no-deps --editable .
	$(OLDEST)/bin/python -m pytest -q $(if $(ARGS),$(ARGS),-k golden)
	$(OLDEST)/bin/dtp train experiment=smoke logger=none hydra.run.dir=$(OLDEST)/smoke
	rm -rf $(OLDEST)

wheel: $(BIN)/python ## dist/*.whl, with conf/ and sweeps/ in it
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

errors: $(VENV)/.installed-test ## write docs/errors.md: wrong inputs and what they are answered
	$(BIN)/python tests/wrong_inputs.py > docs/errors.md.partial && mv docs/errors.md.partial docs/errors.md

audit: $(VENV)/.installed ## known vulnerabilities of what is installed (asks PyPI)
	$(BIN)/python -m pip install --quiet 'pip-audit>=2.7,<3'
	$(BIN)/python -m pip_audit --skip-editable

lock: export UV_CUSTOM_COMPILE_COMMAND = make lock
lock: $(VENV)/.installed-test ## write locks/: what is installed here, and what the extras need, with hashes (asks PyPI)
	$(BIN)/python -m pip install --quiet 'uv>=0.9,<1'
	$(BIN)/python -m pip freeze --exclude-editable --exclude uv > $(VENV)/tested.txt
	$(BIN)/uv pip compile --quiet pyproject.toml locks/build.in $(EXTRAS:%=--extra %) -c $(VENV)/tested.txt \
		--generate-hashes --no-annotate --python $(BIN)/python -o locks/all.txt
	$(BIN)/uv pip compile --quiet pyproject.toml locks/build.in -c locks/all.txt \
		--generate-hashes --no-annotate --python $(BIN)/python -o locks/base.txt

same-numbers: $(VENV)/.installed ## does the code compute what a commit computed, to the last bit: make same-numbers REV=HEAD
	$(BIN)/python benchmarks/same_numbers.py $(REV)

bench: $(VENV)/.installed ## what a step costs, beside a plain PyTorch loop: make bench ARGS="--only bp dtp"
	$(BIN)/python benchmarks/steps.py --save results/steps.json --figure docs/images/steps.png $(ARGS)

lint: $(VENV)/.installed-lint ## ruff, mypy and codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell *.md docs examples dtp_lightning conf sweeps tests benchmarks

format: $(VENV)/.installed-lint ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(VENV)/.installed-lint ## ruff and mypy before every commit
	$(BIN)/pre-commit install

clean: ## remove the environment and caches (never outputs/)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# a stamp for each set of packages: nothing is installed twice until pyproject.toml changes
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV): PyTorch and what it needs, $(SIZE). This takes minutes, once."
	$(call install,base,.)
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing into $(VENV), with what '$*' needs: $(SIZE). This takes minutes, once."
	$(call install,all,.[$*])
	@touch $@
