"""One thread for every test (the sums of a run, and so its bits, depend on how many there are), and Triton's
interpreter where there is no GPU."""

import os

import torch

if not torch.cuda.is_available():
    # before Triton's first import; a process that interprets cannot compile
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)
