"""One command for each trainer, all alike: a YAML file, flags that override it, and a run beside what made it.

And commands for what runs leave: `chat` talks to a model, `report` draws what was measured.
"""
