"""Imported by every Python process that has this folder in its PYTHONPATH; see ``injector.py``."""

import injector

injector.install()
