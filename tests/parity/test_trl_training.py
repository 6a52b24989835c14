"""Two steps of PPO from the same weights, prompts and responses: the metrics and weights of TRL 1.12."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from parity_cases import CASES, load_models
from safetensors.torch import load_file

from fastrlhf import PPOConfig, PPOTrainer

RELATIVE, ABSOLUTE, WEIGHTS = 1e-4, 1e-6, 1e-6
SPEEDS = {"eps"}
# TRL takes the variance over micro-batches, fastrlhf over minibatches
OVER_MICRO_BATCHES = {"val/ratio_var"}


class InjectedTrainer(PPOTrainer):
    """Ours, with prompts and responses from a file."""

    def __init__(self, *args, rollouts, **kwargs):
        super().__init__(*args, **kwargs)
        self.prompts, self.responses = rollouts["prompts"], iter(rollouts["responses"])

    def get_train_dataloader(self):
        return [{"input_ids": prompts} for prompts in self.prompts]

    def generate_responses(self, input_ids, attention_mask):
        return next(self.responses)


def run_ours(folder, models, output) -> PPOTrainer:
    case = json.loads((folder / "case.json").read_text())
    rollouts = load_file(folder / "rollouts.safetensors")
    loaded = load_models(models / case["family"], case["adapter"])
    trainer = InjectedTrainer(
        PPOConfig(output_dir=str(output), padded_averages=True, **case["arguments"]),
        loaded.tokenizer,
        loaded.policy,
        loaded.reference,
        loaded.reward,
        Dataset.from_dict({"input_ids": rollouts["prompts"].flatten(0, 1).tolist()}),
        loaded.value,
        rollouts=rollouts,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_metrics_and_weights_as_trl(case, trl_results, tmp_path, record_property):
    folder = trl_results / "cases" / case.id
    theirs = json.loads((folder / "trl.json").read_text())
    trainer = run_ours(folder, trl_results / "models", tmp_path)
    ours = trainer.state.log_history

    assert {name: getattr(trainer.args, name) for name in theirs["sizes"]} == theirs["sizes"]
    assert len(ours) == len(theirs["log_history"]) == trainer.args.num_total_batches
    excepted = SPEEDS | (OVER_MICRO_BATCHES if trainer.args.gradient_accumulation_steps > 1 else set())
    differing, worst = [], 0.0
    for step, (our_log, their_log) in enumerate(zip(ours, theirs["log_history"], strict=True), start=1):
        for name in their_log.keys() - excepted:
            deviation = abs(our_log[name] - their_log[name])
            allowed = RELATIVE * abs(their_log[name]) + ABSOLUTE
            worst = max(worst, deviation / allowed)
            if not deviation <= allowed:
                differing.append(f"step {step}, {name}: {our_log[name]} here, {their_log[name]} in TRL")
        assert abs(their_log["objective/kl"]) > 0.01, (
            "policy and reference are the same: nothing was compared"
        )
    record_property("metrics_deviation_of_allowed", worst)
    assert not differing, "\n".join(differing)

    before = load_models(trl_results / "models" / case.family, case.adapter)
    for role, model in (("policy", trainer.policy_model), ("value", trainer.value_model)):
        start = dict(getattr(before, role).named_parameters())
        expected = load_file(folder / f"trl-{role}.safetensors")
        actual = dict(model.named_parameters())
        assert actual.keys() == expected.keys()
        deviation = max(float((actual[name] - expected[name]).abs().max().detach()) for name in expected)
        moved = max(float((start[name] - expected[name]).abs().max().detach()) for name in expected)
        record_property(f"{role}_deviation", deviation)
        assert moved > 100 * WEIGHTS, f"the {role} moved by {moved}: nothing was compared"
        assert deviation <= WEIGHTS, f"a weight of the {role} differs by {deviation}, having moved by {moved}"
