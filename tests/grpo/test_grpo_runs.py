"""How a run of groups goes: steps, epochs, prompts computed once, evaluation."""

from __future__ import annotations

import pytest

from fastrlhf.generation import engine
from tests.support.groups import group_rows, group_trainer, small_words


@pytest.mark.parametrize(
    ("options", "steps", "rollouts", "epochs"),
    [
        # 16 prompts, two of four completions a rollout: eight rollouts an epoch
        ({"max_steps": -1, "num_train_epochs": 2}, 16, 16, 2.0),
        ({"max_steps": -1, "num_train_epochs": 1, "num_iterations": 3}, 24, 8, 1.0),
        ({"max_steps": 4}, 4, 4, 0.5),
        ({"max_steps": 4, "num_iterations": 3}, 4, 2, 1 / 6),
        ({"max_steps": 4, "steps_per_generation": 2}, 4, 2, 0.5),
        ({"max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}, 4, 4, 0.5),
        ({"max_steps": -1, "num_train_epochs": 1, "train_dataset": group_rows(7)}, 3, 3, 6 / 7),
    ],
)
def test_steps_are_optimizer_updates(tmp_path, options, steps, rollouts, epochs):
    calls = []

    def counts(completions, **_):
        calls.append(1)
        return small_words(completions)

    trainer = group_trainer("grpo", tmp_path, reward_funcs=counts, **options)
    updates = []
    trainer.optimizer.register_step_post_hook(lambda *_: updates.append(1))
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps == len(updates) == steps
    assert len(calls) == rollouts
    assert trainer.state.epoch == pytest.approx(epochs)


def test_a_longer_run_goes_on_where_a_rollout_was_cut_short(tmp_path):
    options = {"num_iterations": 3, "save_strategy": "steps", "save_steps": 1}
    group_trainer("grpo", tmp_path, max_steps=4, **options).train()
    longer = group_trainer("grpo", tmp_path, max_steps=9, **options)
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 9


def test_a_prompt_is_computed_once_for_its_completions(tmp_path, monkeypatch):
    prompts = []
    prefill = engine.prefill

    def counting(decoder, cache, given):
        prompts.extend(tokens for tokens, _ in given)
        prefill(decoder, cache, given)

    monkeypatch.setattr(engine, "prefill", counting)
    rows = [{"prompt": f"t{row} t1 t2 t3"} for row in range(2)]
    seen = []

    def looks(prompts, completions, **_):
        seen.extend(zip(prompts, completions, strict=True))
        return small_words(completions)

    group_trainer("grpo", tmp_path, train_dataset=rows, reward_funcs=looks, max_steps=1).train()
    assert len(prompts) == 2
    assert len(seen) == 8 and len(set(seen)) > 6, "each completion draws its own numbers"


def test_evaluation(tmp_path):
    asked = []

    def looks(prompts, completions, number, **_):
        asked.append((prompts, number))
        return [float(each) for each in number]

    trainer = group_trainer(
        "rloo",
        tmp_path,
        reward_funcs=looks,
        eval_dataset={"a": group_rows(3), "b": group_rows(2)},
        num_generations_eval=2,
        per_device_eval_batch_size=4,
    )
    found = trainer.evaluate()
    assert [number for _, number in asked] == [[0, 0, 1, 1], [2, 2], [0, 0, 1, 1]]
    # batches count alike, as TRL's averages do
    assert found["eval_a_reward"] == found["eval_a_rewards/looks/mean"] == pytest.approx((0.5 + 2) / 2)
    assert found["eval_b_reward"] == 0.5
    assert 0 < found["eval_b_completions/mean_length"] <= 6
    assert trainer.state.log_history[-1]["eval_b_reward"] == 0.5
    assert group_trainer("rloo", tmp_path).evaluate() == {}


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_settings_of_the_generator_are_handed_on(tmp_path, kind):
    trainer = group_trainer(
        kind,
        tmp_path,
        temperature=0.7,
        top_k=5,
        top_p=0.8,
        min_p=0.1,
        repetition_penalty=1.3,
        generation_kwargs={"min_new_tokens": 3, "top_k": 7, "max_new_tokens": 4},
    )
    assert trainer.sampling == {
        "max_new_tokens": 4,
        "min_new_tokens": 3,
        "temperature": 0.7,
        "top_k": 7,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.3,
        "stop_token_ids": trainer.stop_token_ids,
    }
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    assert rollout.lengths.max() == rollout.response_ids.shape[1] == 4
