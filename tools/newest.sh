#!/usr/bin/env bash
# A short run on the newest libraries that requirements.txt allows, as Colab installs them. Only
# torch stays at the pinned CPU build. Written by hand, not tangled.
set -eu
cd "$(dirname "$0")/.."
trial=$(mktemp -d)
trap 'rm -rf "$trial"' EXIT
grep '^torch==' constraints.txt > "$trial/torch.txt"
if ! .venv/bin/pip download -q --no-deps --dest "$trial" -c "$trial/torch.txt" trl 2>/dev/null; then
    echo "newest: skipped, the package index cannot be reached"
    exit 0
fi
python3 -m venv "$trial/venv"
"$trial/venv/bin/pip" install -q --disable-pip-version-check -r requirements.txt pytest \
    -c "$trial/torch.txt"
"$trial/venv/bin/pip" list --format freeze 2>/dev/null |
    grep -iE '^(transformers|trl|peft|bitsandbytes|datasets|accelerate|huggingface_hub)=='
HF_HUB_OFFLINE=1 "$trial/venv/bin/python" -m pytest -q -p no:cacheprovider tests/test_main.py \
    tests/test_checkpoints.py -k "main_job or predict or resumed_run"
