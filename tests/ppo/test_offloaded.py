"""PPO in little memory: the metrics, weights and checkpoints of plenty, with four models and with an adapter."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from tests.support import tiny

# of 219 kB and 40 kB of parameters, gradients and Adam's state
LITTLE = {"four models": "60kB", "adapter": "25kB"}
MEASURED = ("eps", "time/", "tokens_per_second", "elapsed_s", "memory/")
ROLES = {
    "four models": lambda: {
        "ref_model": tiny.tiny_llama(2),
        "value_model": tiny.tiny_llama_classifier(3),
        "reward_model": tiny.tiny_llama_classifier(4),
    },
    "adapter": lambda: {
        "peft_config": LoraConfig(target_modules="all-linear", exclude_modules=["lm_head"], r=2)
    },
}


def little_of(roles):
    return {"device_memory": LITTLE[roles], "host_memory": "2MB"}


def run(folder, roles, resume=False, **options):
    torch.manual_seed(0)  # an adapter begins at random
    trainer = tiny.tiny_trainer(folder, logging_steps=1, num_ppo_epochs=2, **ROLES[roles](), **options)
    trainer.train(resume_from_checkpoint=resume)
    log = [
        {name: value for name, value in row.items() if not any(part in name for part in MEASURED)}
        for row in trainer.state.log_history
    ]
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return trainer, log, state


def assert_same(actual, expected):
    assert actual[1] == expected[1]
    assert all(torch.equal(actual[2][name], value) for name, value in expected[2].items())


@pytest.mark.filterwarnings("error:.*generates with its own forward")
@pytest.mark.parametrize("roles", ROLES)
def test_little_memory_trains_as_plenty(roles, tmp_path):
    plenty = run(tmp_path / "plenty", roles, device_memory="1GB")
    little = run(tmp_path / "little", roles, **little_of(roles))
    disk = run(tmp_path / "disk", roles, device_memory=LITTLE[roles], offload_dir=str(tmp_path))
    assert_same(little, plenty)
    assert_same(disk, plenty)
    meter = little[0].optimizer.manager.device_meter
    assert meter.peak <= meter.capacity < plenty[0].optimizer.manager.device_meter.held


@pytest.mark.parametrize("roles", ROLES)
def test_and_nearly_as_without_a_manager(roles, tmp_path):
    """PyTorch's AdamW rounds elsewhere."""
    plain, offloaded = (
        run(tmp_path / "plain", roles),
        run(tmp_path / "offloaded", roles, **little_of(roles)),
    )
    for name, value in plain[2].items():
        torch.testing.assert_close(offloaded[2][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("roles", ROLES)
def test_a_checkpoint_holds_what_is_elsewhere(roles, tmp_path):
    whole = run(
        tmp_path / "whole",
        roles,
        save_strategy="steps",
        save_steps=1,
        total_episodes=16,
        host_memory="2MB",
        device_memory=LITTLE[roles],
    )
    steps = whole[0].state.global_step
    assert steps > 1
    checkpoints = sorted((tmp_path / "whole").glob("checkpoint-*"))
    resumed = tiny.tiny_trainer(
        tmp_path / "whole", logging_steps=1, num_ppo_epochs=2, save_strategy="no", total_episodes=16,
        **ROLES[roles](), device_memory=LITTLE[roles], offload_dir=str(tmp_path),
    )  # fmt: skip
    resumed.train(resume_from_checkpoint=str(checkpoints[0]))
    assert resumed.state.global_step == steps
    state = resumed.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole[2].items())


def test_a_written_policy_has_no_holes(tmp_path):
    trainer, _, _ = run(tmp_path, "adapter", **little_of("adapter"))
    trainer.save_model(tmp_path / "saved")
    trainer._save(required=True)
    from safetensors.torch import load_file

    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) > 2
    for path in files:
        for name, value in load_file(path).items():
            assert value.isfinite().all(), f"{name} in {path}"


def test_the_lower_tiers_are_for_what_leaves_the_device():
    with pytest.raises(ValueError, match="set device_memory too"):
        tiny.tiny_config("run", offload_dir="/scratch")
    with pytest.raises(ValueError, match="host_memory is 'much'"):
        tiny.tiny_config("run", device_memory="1GB", host_memory="much")
