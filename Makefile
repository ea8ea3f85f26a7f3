# Every target builds the environment in .venv/ when it is missing or older than the pins, and reuses it after that.
PYTHON ?= python3.11
BIN    := .venv/bin
READY  := .venv/.ready
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help env run demo test test-long check bench bench-accuracy bench-external bench-monitoring bench-serving bench-search bench-overhead lab docs server

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
	@printf '%s\n' '' 'These were the 162 networks of the default grid. Five types of models and their mean predict better,' \
	  'and train in a minute or two:' '  $(BIN)/bioai-esol sweep --preset accurate' \
	  '  $(BIN)/bioai-esol promote --run-tag accurate --gap-threshold 0.6'

# aspirin and caffeine; the models of the preset that train in seconds, and their mean
demo: $(READY)   ## a champion in a minute: three models on descriptors, in a store of their own, demo/mlflow.db
	@mkdir -p demo
	@cd demo && ../$(BIN)/bioai-esol sweep --preset accurate --architecture ridge,gaussian-process,gradient-boosting --run-tag demo
	@cd demo && ../$(BIN)/bioai-esol promote --run-tag demo --gap-threshold 0.6
	@cd demo && ../$(BIN)/bioai-esol report --run-tag demo.members
	@cd demo && ../$(BIN)/bioai-esol predict 'CC(=O)Oc1ccccc1C(=O)O' 'CN1C=NC2=C1C(=O)N(C(=O)N2C)C'

test: $(READY)   ## every notebook as a test, then tests/
	@echo "notebooks"; $(BIN)/python .ci/outputs.py --compare -j 2
	@echo "tests/"; $(BIN)/pytest -m "not alone"
	@echo "tests of a time, one by one"; $(BIN)/pytest -n 0 -m alone

test-long: $(READY) ## five hundred random lives of a registry, and as many command lines; under an hour
	@BIOAI_SEQUENCES=500 $(BIN)/pytest --dist load tests/registry/test_lifecycle.py tests/cli/test_fuzz.py

check: $(READY)  ## drift between notebooks, package, README, outputs and pages; the grain of the code; lint
	@PATH="$(CURDIR)/$(BIN):$$PATH" ./.ci/check

bench: $(READY)  ## speed: the engine beside a plain loop, the whole sweep, growth; ten minutes to half an hour
	@$(BIN)/python benchmarks/speed.py --output benchmarks/speed.md

bench-accuracy: $(READY) ## accuracy: every kind of model on eleven splits; Chemprop too, after benchmarks/chemprop.py; ten minutes
	@$(BIN)/bioai-esol benchmark --output benchmarks/accuracy

bench-external: $(READY) ## molecules outside ESOL: errors, intervals and domain of a model of ESOL, and of a model of AqSolDB; ten minutes
	@$(BIN)/python benchmarks/external.py --output benchmarks/external.md

bench-monitoring: $(READY) ## watching a champion: false alarms and delays in 10,000 simulated lives, and a real stream; twenty minutes
	@$(BIN)/python benchmarks/monitoring.py --output benchmarks/monitoring.md

bench-serving: $(READY) ## speed of answers: a library, requests over HTTP, switches, memory; three quarters of an hour
	@$(BIN)/python benchmarks/serving.py --output benchmarks/serving.md --figure nbs/images/serving.png

bench-search: $(READY) ## which search: a thousand replays of each from stored histories; three minutes
	@$(BIN)/python benchmarks/search.py --output benchmarks/search.md --figure nbs/images/search.png

bench-overhead: $(READY) ## what a configuration costs the parent besides its training; two minutes
	@$(BIN)/python benchmarks/overhead.py --output benchmarks/overhead.md

# a notebook runs in its own folder, where the file of a store named sqlite:///mlflow.db would be another one
lab: $(READY)    ## JupyterLab on copies of the analysis notebooks in work/, with the store of `make run`; on 127.0.0.1
	@store="$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"; \
	case "$$store" in sqlite:////*) ;; sqlite:///*) store="sqlite:///$(CURDIR)/$${store#sqlite:///}" ;; esac; \
	export MLFLOW_TRACKING_URI="$$store"; \
	page=$$($(BIN)/python .ci/lab.py) && echo "Ctrl-C twice stops it" && \
	exec $(BIN)/jupyter lab --ip 127.0.0.1 --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/$$page

docs: $(READY)   ## the documentation site in _docs/, and README.md
	@$(BIN)/python .ci/docs.py

server: $(READY) ## an MLflow server on 127.0.0.1:5000 over mlflow.db; Ctrl-C stops it
	@exec $(BIN)/bioai-esol server
