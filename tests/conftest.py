"""One thread for every test (the sums of a run, and so its bits, depend on how many there are), and Triton's
interpreter where there is no GPU. The simulated accelerator has its place; the tests that use it register it."""

import os

import torch

from fastrlhf.device import simulated

if not torch.cuda.is_available():
    # before Triton's first import; a process that interprets cannot compile
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(1)

# before the first backward: autograd starts its threads for the devices that it finds then
simulated.claim()
