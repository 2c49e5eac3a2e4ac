.DEFAULT_GOAL := run
.PHONY: run test tangle readme check html bench model help
MODEL := data/smollm2/made.json

run: .venv $(MODEL)  ## the main job: fine-tune the model this machine can carry, score before and after (the default)
	.venv/bin/python main.py

test: .venv $(MODEL)  ## the tests, offline
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q tests

.venv: requirements.txt constraints.txt  ## the Python environment; rebuilt when the requirements change
	rm -rf .venv
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt pytest -c constraints.txt || (rm -rf .venv; exit 1)
	touch .venv

model: $(MODEL)  ## data/smollm2, the pretrained Llama for machines without a GPU, where it is missing

$(MODEL): data/smollm2.py | .venv
	.venv/bin/python data/smollm2.py
	touch $@

tangle:  ## write the program from README.org
	emacs -Q --batch README.org -f org-babel-tangle

readme: .venv $(MODEL)  ## evaluate the demonstrations and write their results into README.org (Emacs, twenty minutes)
	HF_HUB_OFFLINE=1 .venv/bin/python tests/document.py readme

check: .venv $(MODEL)  ## fail where README.org shows what its blocks no longer print (Emacs, twenty minutes)
	HF_HUB_OFFLINE=1 .venv/bin/python -m pytest -q tests/test_document.py
	HF_HUB_OFFLINE=1 .venv/bin/python tests/document.py check

html: .venv  ## weave README.org to one page, outputs/README.html (Emacs)
	.venv/bin/python tests/document.py html

bench: .venv $(MODEL)  ## measure speed and memory against what is usual: outputs/bench.json and outputs/bench.png (an hour or two)
	HF_HUB_OFFLINE=1 .venv/bin/python benchmarks/bench.py

help:  ## this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile
