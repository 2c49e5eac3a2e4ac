.DEFAULT_GOAL := run
.PHONY: run setup test tangle readme check html notebook bench help
PYTHON := HF_HUB_OFFLINE=1 .venv/bin/python
MODEL := data/smollm2/made.json

run: .venv $(MODEL)  ## the main job: fine-tune, score before and after (the default)
	.venv/bin/python main.py

setup: .venv $(MODEL)  ## what everything else needs: .venv and data/smollm2, the small Llama

test: .venv $(MODEL)  ## the tests, offline
	$(PYTHON) -m pytest -q tests

.venv: requirements.txt constraints.txt  # made anew when the requirements change
	rm -rf .venv
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt \
	    pytest nbformat nbclient ipykernel pygments -c constraints.txt || (rm -rf .venv; exit 1)
	touch .venv

$(MODEL): data/smollm2.py | .venv
	.venv/bin/python data/smollm2.py
	touch $@

tangle:  ## write the program from README.org (Emacs)
	emacs -Q --batch README.org -f org-babel-tangle

readme: .venv $(MODEL)  ## measure what is missing, evaluate and weave README.org (half an hour)
	$(PYTHON) benchmarks/curve.py --seeds 1
	$(PYTHON) tests/document.py readme
	$(PYTHON) tests/document.py notebook

check: .venv $(MODEL)  ## fail where README.org shows what it no longer prints (half an hour)
	$(PYTHON) tests/document.py check

html: .venv  ## weave README.org to one page, outputs/README.html (Emacs)
	.venv/bin/python tests/document.py html

notebook: .venv  ## weave README.org to a notebook, day9.ipynb
	.venv/bin/python tests/document.py notebook

bench: .venv $(MODEL)  ## measure speed and memory, outputs/bench.json (four to five hours)
	$(PYTHON) benchmarks/bench.py

help:  ## this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile
