"""Signs of life."""

import io
import re
import sys

import pytest
from conftest import TEXTS, our_log, rows_of

from day9.progress import Lines, progress
from day9.settings import Settings


class Hasty(Lines):
    """Lines without a wait."""

    def __init__(self, **options):
        super().__init__(**options | {"mininterval": 0, "maxinterval": 0, "delay": 0})


def test_lines_in_a_pipe_say_how_far_it_is(random_llama, tokenizer, prompt, tmp_path, monkeypatch,
                                           capsys):
    """Scoring validation has lines of its own while those of training go on."""
    monkeypatch.setattr("day9.progress.Lines", Hasty)
    settings = Settings(batch_size=1, max_length=128, epochs=2, learning_rate=1e-3,
                        pass_tokens=64)
    our_log(random_llama, tokenizer, prompt, rows_of(tokenizer, prompt, TEXTS[:3]), settings,
            tmp_path)
    said = capsys.readouterr()
    assert not said.err and not set("\r\x1b") & set(said.out) and "\n\n" not in said.out
    lines = [line for line in said.out.splitlines() if not line.startswith(("epoch", "memory"))]
    assert all(re.fullmatch(r"(training: \d of \d, +[\d.?]+ steps|scoring: \d of \d, +[\d.?]+ rows)"
                            r"/s, (\?|\d\d:\d\d) left(, loss [\d.]+)?", line) for line in lines)
    counts = [line.split(",")[0] for line in lines if line.startswith("training")]
    assert list(dict.fromkeys(counts)) == [f"training: {i} of 6" for i in range(7)]
    assert re.search(r"training: 5 of 6, .*, \d\d:\d\d left, loss \d", said.out)
    assert said.out.count("scoring: 2 of 2") == 2


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
def test_bars_are_for_terminals_that_can_move_their_cursor(monkeypatch, capsys, terminal):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", terminal)
    bar = progress(5, "scoring", "rows")
    bar.update(3)
    bar.refresh()
    bar.close()
    assert ("scoring" in sys.stderr.getvalue()) == (terminal == "xterm")
    assert not capsys.readouterr().out
