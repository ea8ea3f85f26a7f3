# Every target builds the environment in .venv/ when it is missing or older than the pins, and reuses it after that.
PYTHON ?= python3.11
BIN    := .venv/bin
READY  := .venv/.ready
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help env run demo test test-long check bench bench-accuracy lab docs server

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/' | expand -t 23

$(READY): constraints.txt pyproject.toml
	@echo "building the environment in .venv/ from constraints.txt: some minutes and about 2 GB, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
	@echo "environment ready"

env: $(READY)    ## build .venv/ only

run: $(READY)    ## the full sweep (162 runs × 200 epochs), the candidate, the champion, a report, one prediction
	@$(BIN)/bioai-esol sweep
	@$(BIN)/bioai-esol promote || { $(BIN)/bioai-esol report; exit 1; }
	@$(BIN)/bioai-esol report
	@$(BIN)/bioai-esol predict CCO

demo: $(READY)   ## the same on a small grid, in its own store demo/mlflow.db
	@mkdir -p demo
	@cd demo && ../$(BIN)/bioai-esol sweep --run-tag demo --hidden-dim 32,64 --lr 1e-2 --batch-size 32 --dropout 0,0.2 --weight-decay 0 --epochs 25
	@cd demo && ../$(BIN)/bioai-esol promote --run-tag demo
	@cd demo && ../$(BIN)/bioai-esol report --run-tag demo
	@cd demo && ../$(BIN)/bioai-esol predict CCO

test: $(READY)   ## every notebook as a test, then tests/
	@echo "notebooks"; $(BIN)/nbdev_test --skip_folder_re '^(lab|[_.].*)$$' --n_workers 2 --do_print
	@echo "tests/"; $(BIN)/pytest

test-long: $(READY) ## five hundred random lives of a registry; about half an hour
	@BIOAI_SEQUENCES=500 $(BIN)/pytest --dist load tests/test_lifecycle.py

check: $(READY)  ## drift between notebooks, package and README; lint
	@PATH="$(CURDIR)/$(BIN):$$PATH" ./.ci/check

bench: $(READY)  ## speed: the engine beside a plain loop, the whole sweep, growth; ten minutes to half an hour
	@$(BIN)/python benchmarks/speed.py --output benchmarks/speed.md

bench-accuracy: $(READY) ## accuracy: every kind of model on eleven splits; Chemprop too, after benchmarks/chemprop.py; ten minutes
	@$(BIN)/bioai-esol benchmark --output benchmarks/accuracy

# a notebook runs in its own folder, where the file of a store named sqlite:///mlflow.db would be another one
lab: $(READY)    ## JupyterLab on the analysis notebooks, with the store of `make run`; on 127.0.0.1, Ctrl-C twice stops it
	@store="$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"; \
	case "$$store" in sqlite:////*) ;; sqlite:///*) store="sqlite:///$(CURDIR)/$${store#sqlite:///}" ;; esac; \
	export MLFLOW_TRACKING_URI="$$store"; \
	exec $(BIN)/jupyter lab --ip 127.0.0.1 --ServerApp.root_dir=nbs --LabApp.default_url=/lab/tree/lab/sweep_analysis.ipynb

docs: $(READY)   ## the documentation site in _docs/, and README.md
	@$(BIN)/python .ci/docs.py

server: $(READY) ## an MLflow server on 127.0.0.1:5000 over mlflow.db; Ctrl-C stops it
	@exec $(BIN)/bioai-esol server
