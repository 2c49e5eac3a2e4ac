"""Measurements that take longer than a reader waits. Written by hand, not tangled."""

import day9  # noqa: F401: what it sets must be set before other libraries are imported
