"""Start-up of the document's session: errors go to a file. Written by hand, not tangled."""

import os
import sys
import traceback


def note(kind, error, trace):
    with open(os.environ["DAY9_ERRORS"], "a", encoding="utf-8") as file:
        traceback.print_exception(kind, error, trace, file=file)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = note
