"""Builds the package's compiled modules: what `setup.py` calls, in files that tests can import."""
