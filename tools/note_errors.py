"""Start-up of the document's session under test: notes uncaught errors in file DAY9_ERRORS."""

import os
import sys
import traceback


def note(kind, error, trace):
    with open(os.environ["DAY9_ERRORS"], "a", encoding="utf-8") as file:
        traceback.print_exception(kind, error, trace, file=file)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = note
