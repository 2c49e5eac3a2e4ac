.DEFAULT_GOAL := run
.PHONY: run setup test newest tangle readme check html notebook bench where folds help
PYTHON := HF_HUB_OFFLINE=1 .venv/bin/python
MODELS := data/smollm2/made.json data/minilm/made.json

run: .venv $(MODELS)  ## the main job: fine-tune, score before and after (the default)
	.venv/bin/python main.py

setup: .venv $(MODELS)  ## what everything else needs: .venv, and the small models in data/

test: .venv $(MODELS)  ## the tests, offline
	$(PYTHON) -m pytest -q tests

newest: .venv  ## a short run on the newest libraries that requirements.txt allows
	tools/newest.sh

.venv: requirements.txt constraints.txt  # made anew when the requirements change
	rm -rf .venv
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt \
	    pytest nbformat nbclient ipykernel pygments -c constraints.txt || (rm -rf .venv; exit 1)
	touch .venv

$(MODELS): data/%/made.json: tools/%.py | .venv
	.venv/bin/python -m tools.$*
	touch $@

tangle:  ## write the program from README.org (Emacs)
	emacs -Q --batch README.org -f org-babel-tangle

readme: .venv $(MODELS)  ## evaluate and weave README.org (half an hour)
	$(PYTHON) -m tools.document readme
	$(PYTHON) -m tools.document notebook

check: .venv $(MODELS)  ## fail where README.org shows what it no longer prints (half an hour)
	$(PYTHON) -m tools.document check

html: .venv  ## weave README.org to one page, outputs/README.html (Emacs)
	.venv/bin/python -m tools.document html

notebook: .venv  ## weave README.org to a notebook, day9.ipynb
	.venv/bin/python -m tools.document notebook

bench: .venv $(MODELS)  ## measure speed and memory, outputs/bench.json (four to five hours)
	$(PYTHON) -m benchmarks.bench

where: .venv $(MODELS)  ## measure where fine-tuning wins, outputs/where.json (many hours)
	$(PYTHON) -m benchmarks.where

folds: .venv $(MODELS)  ## measure the published protocol, outputs/folds.json (four hours)
	$(PYTHON) -m benchmarks.folds

help:  ## this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile
