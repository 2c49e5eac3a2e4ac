"""The benchmark at its smallest size: it runs, and scoring in one pass is exact. Nothing is asked of the times."""

import json
import math
import os
import subprocess
import sys

from conftest import ROOT

SECTIONS = {"scoring", "training", "tried", "startup", "growth", "end_to_end"}


def test_the_benchmark_measures_every_section_and_scoring_is_exact(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "bench.py", "--smallest", "--output-dir", tmp_path], capture_output=True, text=True,
                          timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert set(kept) == SECTIONS and (tmp_path / "bench.png").stat().st_size > 0
    for section, measured in kept.items():
        assert f"{section}, smallest size" in done.stdout
        figures = [figure["median"] for row in measured["rows"] for name, figure in row.items() if name != "case"]
        assert figures and all(map(math.isfinite, figures)), section
    cases = {section: [row["case"] for row in measured["rows"]] for section, measured in kept.items()}
    assert {case["method"] for case in cases["scoring"]} == {"one pass", "pairs", "generate", "generate in batches", "exactness", "profile"}
    assert [case["method"] for case in cases["training"] + cases["end_to_end"]] == ["ours", "stock", "profile", "main job", "notebook"]
    gaps = [row["float32"]["high"] for row in kept["scoring"]["rows"] if row["case"]["method"] == "exactness"]
    assert len(gaps) == 2 and max(gaps) < 1e-3
