"""Labelled texts, read as they were written or refused. Written by hand, not tangled."""
