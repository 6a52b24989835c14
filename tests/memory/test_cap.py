"""A real run in little real memory, as the operating system counts it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import json, sys
    import torch
    from torch import nn
    import fastrlhf
    from fastrlhf.memory.resident import peak_resident_mb

    torch.set_num_threads(1)
    options = json.loads(sys.argv[1])

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1024, 1024)

        def forward(self, hidden):
            return hidden + torch.tanh(self.linear(hidden))

    with torch.device("meta"):
        model = nn.Sequential(*(Block() for _ in range(96)))
    parameters = list(model.parameters())
    optimizer = fastrlhf.offload(model, torch.optim.AdamW(parameters, lr=1e-3), **options)
    torch.manual_seed(0)
    for block in model:
        with optimizer.manager.use(block, writes=True):
            block.linear.reset_parameters()
    losses = []
    for _ in range(3):
        loss = (model(torch.randn(8, 1024)) / 30 - 1).square().mean()
        loss.backward()
        optimizer.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with optimizer.manager.use(model[-1]):
        last = model[-1].linear.weight.double().sum().item()
    state = 16 * sum(parameter.numel() for parameter in parameters)
    print(json.dumps({"losses": losses, "last": last, "state": state, "peak": 1e6 * peak_resident_mb()}))
"""


def run(**options):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_parameters_gradients_and_adam_state_of_three_times_the_memory_train_to_the_same_bits(tmp_path):
    """The limit counts everything: Python, PyTorch's libraries, activations, buffers."""
    plenty = run()
    little = run(device_memory="40MB", disk=str(tmp_path))
    assert little["losses"] == plenty["losses"] and little["last"] == plenty["last"]
    assert plenty["peak"] > plenty["state"]
    assert 3 * little["peak"] < little["state"]
