"""The trainer's and the configuration's signatures are TRL 1.12's, in order and with the same defaults."""

from __future__ import annotations

import json

import pytest
from trl_signature import signature

from fastrlhf import PPOConfig, PPOTrainer


@pytest.fixture(scope="module")
def theirs(trl_results):
    return json.loads((trl_results / "signature.json").read_text())


@pytest.fixture(scope="module")
def ours():
    return json.loads(json.dumps(signature(PPOTrainer, PPOConfig)))


def test_trainer_takes_the_same_parameters_first(ours, theirs):
    assert ours["trainer"][: len(theirs["trainer"])] == theirs["trainer"]


def test_methods_take_at_least_the_same_parameters(ours, theirs):
    for method, parameters in theirs["methods"].items():
        assert ours["methods"][method][: len(parameters)] == parameters, method


def test_config_takes_the_same_parameters_first(ours, theirs):
    assert ours["config"][: len(theirs["config"])] == theirs["config"]


def test_config_has_the_same_fields_and_defaults_first(ours, theirs):
    assert ours["fields"][: len(theirs["fields"])] == theirs["fields"]


def test_configs_come_out_the_same(ours, theirs):
    """`__post_init__` may change a default (bf16 does)."""
    differing = {
        name: (ours["values"].get(name, "missing"), value)
        for name, value in theirs["values"].items()
        if ours["values"].get(name, "missing") != value
    }
    assert not differing
