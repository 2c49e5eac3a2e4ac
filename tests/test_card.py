"""The README.md of a run."""

import json
import re

import pytest
from conftest import command
from huggingface_hub import ModelCard


def test_the_card_shows_its_pictures_and_its_snippet_works(main_job, tmp_path):
    _, _, run = main_job
    metrics = json.loads((run / "metrics.json").read_text())
    card = ModelCard.load(run / "README.md")
    accuracy = metrics["systems"]["fine_tuned"]["accuracy"]
    assert card.data.eval_results[0].metric_value == pytest.approx(accuracy, abs=1e-4)
    assert metrics["verdict"] in card.text and "120 rows for train" in card.text
    pictures = re.findall(r"!\[.+\]\((.+)\)", card.text)
    assert len(pictures) == 3
    for picture in pictures:
        assert (run / picture).read_bytes().startswith(b"\x89PNG")
    [snippet] = re.findall(r"```python\n(.*?)```", card.text, re.S)
    (tmp_path / "snippet.py").write_text(snippet)
    done = command("snippet.py", cwd=tmp_path)
    assert done.stdout.strip() in ("billing", "heart and lungs"), done.stderr
