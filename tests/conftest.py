"""One thread for every test: the sums of a run, and so its bits, depend on how many there are."""

import torch

torch.set_num_threads(1)
