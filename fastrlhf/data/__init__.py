"""Prompts: how they are read, checked, padded and ordered."""
