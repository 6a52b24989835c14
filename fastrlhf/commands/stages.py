"""The trainers that are commands, one line each."""

from __future__ import annotations

from fastrlhf.commands.dpo import DPO
from fastrlhf.commands.group import GRPO, RLOO
from fastrlhf.commands.ppo import PPO
from fastrlhf.commands.reward import REWARD
from fastrlhf.commands.sft import SFT
from fastrlhf.commands.stage import Stage

STAGES: dict[str, Stage] = {stage.name: stage for stage in (SFT, REWARD, DPO, PPO, GRPO, RLOO)}
