"""Makes data/health-questions out of source/GARD.tsv. Written by hand, not tangled."""

import csv
import hashlib
import sys
from collections import Counter
from pathlib import Path
from random import Random

from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

FOLDER = Path(__file__).resolve().parent.parent / "data" / "health-questions"
SHA256 = "2f40bfa6913c51d7c534005372bed866f16c6bf76fa9e0e7e36b0e5b2b4a3fce"
SIZES = {"train": 1000, "validation": 200, "test": 600}  # the rest is the pool
SEED = 42  # another one would move test rows into train: it never changes
NAMES = {  # of the annotators' types; the other three have no plain meaning, or too few questions
    "Management": "treatment", "Information": "general information",
    "Susceptibility": "inheritance and frequency", "Prognosis": "outlook",
    "OtherEffect": "effects and links", "Diagnosis": "diagnosis", "Cause": "cause",
    "PersonOrg": "doctor or organization", "Manifestation": "symptoms",
    "Complication": "complications"}

Row = tuple[str, str]  # text and label


def read_source(path: Path) -> list[Row]:
    """All questions, each with the annotators' type. Raises ValueError if the file is another."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the file it should be: its SHA-256 differs")
    lines = (line.split("\t") for line in content.decode().splitlines()[1:])
    return [(text.strip(), kind) for kind, text in lines]


def choose(rows: list[Row]) -> list[Row]:
    """The questions of the ten types; repeats are gone, and questions that have two labels."""
    found = {}
    for text, kind in rows:
        if kind in NAMES:
            found.setdefault(" ".join(text.lower().split()), []).append((text, NAMES[kind]))
    return [rows[0] for rows in found.values() if len({label for _, label in rows}) == 1]


def near_copies(texts: list[str]) -> list[int]:
    """A group's number for each text: two whose sets of words overlap by 0.8 or more share it."""
    words = CountVectorizer(token_pattern=r"\w+", binary=True).fit_transform(texts)
    common = (words @ words.T).toarray()
    sizes = common.diagonal()
    alike = 5 * common >= 4 * (sizes[:, None] + sizes - common)  # integers: 0.8 is exact
    return connected_components(alike)[1].tolist()


def in_proportion(counts: Counter, size: int) -> Counter:
    """So many rows of each class that `size` is shared out in proportion (largest remainder)."""
    exact = {label: size * count / counts.total() for label, count in counts.items()}
    shares = Counter({label: int(share) for label, share in exact.items()})
    by_remainder = sorted(exact, key=lambda label: shares[label] - exact[label])
    shares.update(by_remainder[:size - shares.total()])
    return shares


def split(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each split, and the pool's; near copies are never parted."""
    counts, random = Counter(label for _, label in rows), Random(SEED)
    room = {name: in_proportion(counts, size) for name, size in SIZES.items()}
    room["pool"] = counts - sum(room.values(), Counter())
    splits, found = {name: [] for name in room}, {}
    for row, group in zip(rows, near_copies([text for text, _ in rows])):
        found.setdefault(group, []).append(row)
    groups = list(found.values())
    random.shuffle(groups)
    for group in sorted(groups, key=len, reverse=True):  # single rows fill what is left
        needed = Counter(label for _, label in group)
        free = {name: sum(left[label] for label in needed)
                for name, left in room.items() if needed <= left}
        name, = random.choices(list(free), list(free.values()))
        splits[name] += group
        room[name] -= needed
    for part in splits.values():
        random.shuffle(part)
    return splits


def main() -> int:
    """Write the four files; returns the exit code."""
    try:
        splits = split(choose(read_source(FOLDER / "source" / "GARD.tsv")))
    except (OSError, ValueError) as error:
        print(f"health_questions.py: error: {error}", file=sys.stderr)
        return 1
    for name, rows in splits.items():
        path = FOLDER / ("source" if name == "pool" else "") / f"{name}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("text", "label"), *rows])
        print(f"{path}: {len(rows):,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
