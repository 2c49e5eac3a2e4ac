#!/usr/bin/env python
"""Tables and picture of what bench.py measured: python show.py [bench.json] prints the tables."""

import json
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.ticker import NullLocator

# How many times as fast as these ours is to be, at so many labels.
SCORING_GOALS = {("pairs", 8): 3, ("pairs", 77): 8, ("generate", 77): 15, ("generate in batches", 77): 15}
TRAINING_GOAL, END_TO_END_GOAL, MAIN_JOB_SECONDS = 1.5, 3, 180


def table(header: list[str], rows: list[list]) -> str:
    """Plain text in columns."""
    lines = [list(map(str, line)) for line in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def spread(figure: dict[str, float]) -> str:
    """The median, and the range where there is one."""
    return f"{figure['median']:.2f}" + (f" ({figure['low']:.2f} - {figure['high']:.2f})" if figure["runs"] > 1 else "")


def own_figures(row: dict) -> dict[str, dict]:
    """What a measurement itself returned, without its memory."""
    return {name: figure for name, figure in row.items() if name not in ("case", "peak_mb", "own_mb")}


def memory(row: dict) -> str:
    """Peak memory, and what of it was beyond the imported libraries."""
    return f"{row['peak_mb']['median']:.0f} ({row['own_mb']['median']:.0f})"


def outcome(goal: str, met: bool) -> str:
    """A goal, and what became of it."""
    return f"{goal}: {'met' if met else 'missed'}"


def times_as_fast(ratio: float, goal: float | None = None) -> list[str]:
    """Two cells: how many times as fast ours is, and the goal with what became of it, where there is one."""
    return [f"{ratio:.1f}x", outcome(f"{goal}x", ratio >= goal) if goal else ""]


def costliest(row: dict) -> str:
    """The shares of a profile."""
    return ", ".join(f"{name.split('::')[-1].strip('_')} {figure['median']:.0%}" for name, figure in own_figures(row).items())


def slope(points: list[tuple[float, float]]) -> float:
    """The exponent k of y = c x^k that fits best."""
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0]) if len(points) > 1 else float("nan")


def show_scoring(rows: list[dict]) -> str:
    """Speeds, exactness, and how the time grows with the length of the text."""
    task = lambda row: tuple(row["case"][name] for name in ("data", "labels", "length"))
    timed = [row for row in rows if "texts_per_second" in row]
    ours = {task(row): row["texts_per_second"]["median"] for row in timed if row["case"]["method"] == "one pass"}
    others = list(dict.fromkeys(row["case"]["method"] for row in timed if row["case"]["method"] != "one pass"))
    lines, times, ratios = [], {}, {}
    for row in timed:
        data, labels, length = task(row)
        method = row["case"]["method"]
        ratios[task(row), method] = ours[task(row)] / row["texts_per_second"]["median"]
        lines.append([data, labels, f"{length} tokens" if length else "its own", method, f"{row['tokens_per_text']['median']:.0f}",
                      spread(row["texts_per_second"]), memory(row), f"{row['no_label']['median']:.0%}" if "no_label" in row else "never",
                      *times_as_fast(ratios[task(row), method], None if length else SCORING_GOALS.get((method, labels)))])
        if length:
            times.setdefault(method, []).append((length, row["seconds"]["median"]))
    exact = [[*task(row)[:2], *(f"{row[name]['median']:.1e}" for name in ("float32", "4 bits"))]
             for row in rows if row["case"]["method"] == "exactness"]
    spent = [[*task(row)[:2], costliest(row),
              *(f"{ratios[task(row), other] / row['aten::mm']['median']:.1f}x" for other in others)] for row in rows if row["case"]["method"] == "profile"]
    return "\n".join([
        f"{timed[0]['case']['texts']} texts",
        table(["data", "labels", "text is", "method", "tokens", "texts a second", "peak MB (own)", "no label", "ours is", "goal"], lines),
        "\nlargest difference of a log-probability, one pass against pairs:", table(["data", "labels", "float32", "4 bits"], exact),
        "\none pass, shares of the time of torch's operations, and how many times as fast it would be if only mm took time:",
        table(["data", "labels", "costliest operations", *others], spent), "",
        *(f"time grows as the text's length to the power {slope(points):.2f}, {slope(points[-2:]):.2f} between the longest two: {method}"
          for method, points in times.items())])


def show_training(rows: list[dict]) -> str:
    """Speed, memory and accuracy, and where the time of ours goes."""
    timed = [row for row in rows if "examples_per_second" in row]
    ours = {row["case"]["data"]: row["examples_per_second"]["median"] for row in timed if row["case"]["method"] == "ours"}
    lines = table(["data", "rows", "epochs", "method", "examples a second", "peak MB (own)", "accuracy (mean)", "ours is", "goal"], [
        [case["data"], case["train"], case["epochs"], case["method"], spread(row["examples_per_second"]), memory(row), f"{row['accuracy']['mean']:.3f}",
         *times_as_fast(ours[case["data"]] / row["examples_per_second"]["median"], TRAINING_GOAL if case["method"] == "stock" else None)]
        for row in timed for case in [row["case"]]])
    return "\n".join([lines, *(f"\nours, shares of the time of torch's operations: {costliest(row)}" for row in rows if row not in timed)])


def show_tried(rows: list[dict]) -> str:
    """What each change to ours costs."""
    ours = next(row["examples_per_second"]["median"] for row in rows if row["case"]["variant"] == "ours")
    return table(["variant", "examples a second", "peak MB (own)", "of ours"], [
        [row["case"]["variant"], spread(row["examples_per_second"]), memory(row), f"{row['examples_per_second']['median'] / ours:.0%}"] for row in rows])


def show_startup(rows: list[dict]) -> str:
    """Seconds of each part."""
    return table(["part", "seconds"], [[name, spread(figure)] for row in rows for name, figure in own_figures(row).items()])


def show_growth(rows: list[dict]) -> str:
    """Seconds of each part and peak memory after it, at each number of rows, and the exponent of the time's growth: of all, of the last two."""
    lines = []
    for part in [name for name in rows[0] if f"{name} peak_mb" in rows[0]]:
        points = [(row["case"]["rows"], row[part]["median"]) for row in rows if part in row]
        lines.append([part, *(f"{row[part]['median']:.2f} s, {row[f'{part} peak_mb']['median']:.0f} MB" if part in row else "" for row in rows),
                      f"{slope(points):.2f}", f"{slope(points[-2:]):.2f}"])
    return table(["part", *(f"{row['case']['rows']:,} rows" for row in rows), "exponent", "of the last two"], lines)


def show_end_to_end(rows: list[dict]) -> str:
    """Seconds, memory and accuracy."""
    ours = {row["case"]["epochs"]: row["seconds"]["median"] for row in rows if row["case"]["method"] != "notebook"}

    def compared(case: dict, seconds: float) -> list[str]:
        ratio, goal = times_as_fast(seconds / ours[case["epochs"]], END_TO_END_GOAL if case["method"] == "notebook" else None)
        return [ratio, outcome(f"{MAIN_JOB_SECONDS} s", seconds <= MAIN_JOB_SECONDS) if case["method"] == "main job" else goal]
    return table(["data", "rows", "epochs", "program", "seconds", "fine-tuning", "peak MB", "accuracy (mean)", "no label before, after", "ours is", "goal"], [
        [case["data"], case["train"], case["epochs"], case["method"], spread(row["seconds"]), f"{row['tuning_seconds']['median']:.0f}" if "tuning_seconds" in row else "",
         f"{row['peak_mb']['median']:.0f}", f"{row['accuracy']['mean']:.3f}",
         f"{row['no_label_before']['mean']:.0%}, {row['no_label']['mean']:.0%}" if "no_label" in row else "never",
         *compared(case, row["seconds"]["median"])]
        for row in rows for case in [row["case"]]])


def show(section: str, kept: dict) -> str:
    """The table of a section of bench.json, and what it was measured on."""
    on = ", ".join(f"{name} {value}" for name, value in kept["machine"].items())
    runs = max(figure["runs"] for row in kept["rows"] for figure in own_figures(row).values())
    return f"{section}, {kept['size']} size, median of {runs} run{'s' * (runs > 1)} on {on}\n{globals()[f'show_{section}'](kept['rows'])}"


def draw(results: dict, path: Path) -> str:
    """Write scoring speed against the number of labels, beside training speed with the accuracy reached; returns the path."""
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    kept = {section: results.get(section, {"rows": []})["rows"] for section in ("scoring", "training")}
    for method, marker in (("one pass", "o"), ("pairs", "s"), ("generate", "^"), ("generate in batches", "v")):
        rows = [row for row in kept["scoring"] if (row["case"]["method"], row["case"]["data"], row["case"]["length"]) == (method, "embedded", None)]
        left.plot([row["case"]["labels"] for row in rows], [row["texts_per_second"]["median"] for row in rows], marker=marker, label=method)
    counts = sorted({row["case"]["labels"] for row in kept["scoring"]})
    left.set(xscale="log", yscale="log", xlabel="labels", ylabel="texts a second", title="Scoring")
    left.xaxis.set_minor_locator(NullLocator())
    left.set_xticks(counts, counts)
    left.legend()
    trained = [row for row in kept["training"] if "examples_per_second" in row]
    names = [f"{row['case']['method']}, {row['case']['data']}" for row in trained]
    bars = right.barh(names, [row["examples_per_second"]["median"] for row in trained], color="tab:blue")
    right.bar_label(bars, [f"accuracy {row['accuracy']['mean']:.3f}" for row in trained], padding=3)
    right.margins(x=0.5)
    right.invert_yaxis()
    right.set(xlabel="examples a second", title="Training")
    figure.savefig(path, dpi=120)
    return str(path)


if __name__ == "__main__":
    file = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "outputs" / "bench.json")
    measured = json.loads(file.read_text(encoding="utf-8"))
    print(*(show(section, kept) for section, kept in measured.items()), sep="\n\n")
