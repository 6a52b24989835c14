from __future__ import annotations

import torch

from fastrlhf.bench import models
from fastrlhf.bench.function_reward import FunctionReward


def test_it_scores_the_completions_text_and_gives_the_score_at_every_position():
    _, tokenizer = models.policy_and_tokenizer("tiny", ending=False)
    seen = []

    def reward(prompts, completions):
        seen.append((prompts, completions))
        return [0.25, -1.0]

    model = FunctionReward(reward, tokenizer)
    model.prompt_length = 3
    pad = models.PAD
    tokens = torch.tensor([[pad, 5, 6, 7, 8, pad], [9, 10, 11, 12, pad, pad]])
    mask = tokens != pad
    output = getattr(model, model.base_model_prefix)(
        input_ids=tokens.masked_fill(~mask, 0),
        attention_mask=mask,
        return_dict=True,
        output_hidden_states=True,
    )
    scores = model.score(output.hidden_states[-1])
    assert seen == [(["w5 w6", "w9 w10 w11"], ["w7 w8", "w12"])]
    assert scores.shape == (2, 6, 1)
    assert torch.equal(scores[:, 4, 0], torch.tensor([0.25, -1.0]))
