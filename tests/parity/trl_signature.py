"""What a script written for a trainer relies on, as JSON."""

from __future__ import annotations

import dataclasses
import inspect

METHODS = ("train", "generate_completions", "save_model", "get_train_dataloader", "get_eval_dataloader")


def signature(trainer: type, config: type, methods: tuple[str, ...] = METHODS) -> dict:
    """Parameters of trainer, its methods and config; the config's fields, and their values in an instance."""
    made = config(output_dir="out", use_cpu=True, report_to=[])
    fields = dataclasses.fields(config)
    return {
        "trainer": _parameters(trainer.__init__),
        "methods": {name: _parameters(getattr(trainer, name)) for name in methods},
        "config": _parameters(config.__init__),
        "fields": [[item.name, _default(item)] for item in fields],
        "values": {item.name: repr(getattr(made, item.name)) for item in fields if item.init},
    }


def _parameters(function) -> list[list[str | None]]:
    """Name, kind and default of each parameter but self."""
    return [
        [name, parameter.kind.name, None if parameter.default is parameter.empty else repr(parameter.default)]
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]


def _default(item: dataclasses.Field) -> str | None:
    if item.default_factory is not dataclasses.MISSING:
        return repr(item.default_factory())
    return None if item.default is dataclasses.MISSING else repr(item.default)
