"""One thread for every test (the sums of a run, and so its bits, depend on how many there are), Triton's interpreter
where there is no GPU, and drawn cases that are the same in every run (others with `--hypothesis-profile=random`)."""

import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # before Triton's first import; a process that interprets cannot compile
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
settings.register_profile("random", derandomize=False)
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")
