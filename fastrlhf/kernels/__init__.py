"""One public function per operation; `using` forces the backend that runs them."""

from fastrlhf.kernels.dispatch import using
from fastrlhf.kernels.gae import GAE, gae
from fastrlhf.kernels.kl import kl_estimate
from fastrlhf.kernels.linear import linear
from fastrlhf.kernels.linear_logprob import LinearLogprob, linear_logprob
from fastrlhf.kernels.masked import masked_mean, masked_moments, whiten
from fastrlhf.kernels.ppo_loss import PPOLoss, Stat, ppo_loss
from fastrlhf.kernels.quantize import QuantizedWeight, dequantize, quantize
from fastrlhf.kernels.sample import Sample, sample

__all__ = [
    "GAE",
    "LinearLogprob",
    "PPOLoss",
    "QuantizedWeight",
    "Sample",
    "Stat",
    "dequantize",
    "gae",
    "kl_estimate",
    "linear",
    "linear_logprob",
    "masked_mean",
    "masked_moments",
    "ppo_loss",
    "quantize",
    "sample",
    "using",
    "whiten",
]
