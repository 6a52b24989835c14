"""One public function per operation; `using` forces the backend that runs them."""

from fastrlhf.kernels.adamw import adamw
from fastrlhf.kernels.adamw_each import adamw_each
from fastrlhf.kernels.attention import Attention, attention, left_padded_attention, left_padding
from fastrlhf.kernels.begin_step import BeginStep, begin_step
from fastrlhf.kernels.decode_attention import decode_attention
from fastrlhf.kernels.dispatch import using
from fastrlhf.kernels.end_step import end_step
from fastrlhf.kernels.gae import GAE, gae
from fastrlhf.kernels.glu import geglu, swiglu
from fastrlhf.kernels.group_advantages import GroupAdvantages, group_advantages
from fastrlhf.kernels.kl import kl_estimate, weighted_kl
from fastrlhf.kernels.linear import linear
from fastrlhf.kernels.linear_cross_entropy import LinearCrossEntropy, TokenStat, linear_cross_entropy
from fastrlhf.kernels.linear_logprob import LinearLogprob, linear_logprob
from fastrlhf.kernels.linear_logprob_with_reference import (
    LinearLogprobWithReference,
    linear_logprob_with_reference,
)
from fastrlhf.kernels.linear_ppo_loss import linear_ppo_loss
from fastrlhf.kernels.linear_preference import LinearPreference, PreferenceStat, linear_preference
from fastrlhf.kernels.lora_linear import lora_linear
from fastrlhf.kernels.masked import masked_mean, masked_moments, whiten
from fastrlhf.kernels.norm import AddedNorm, layer_norm, rms_norm
from fastrlhf.kernels.ppo_loss import PPOLoss, Stat, ppo_loss
from fastrlhf.kernels.quantize import QuantizedWeight, dequantize, quantize
from fastrlhf.kernels.rope import Rope, rope, rope_inplace
from fastrlhf.kernels.rope_cache import rope_cache
from fastrlhf.kernels.sample import Sample, sample

__all__ = [
    "GAE",
    "AddedNorm",
    "Attention",
    "BeginStep",
    "GroupAdvantages",
    "LinearCrossEntropy",
    "LinearLogprob",
    "LinearLogprobWithReference",
    "LinearPreference",
    "PPOLoss",
    "PreferenceStat",
    "QuantizedWeight",
    "Rope",
    "Sample",
    "Stat",
    "TokenStat",
    "adamw",
    "adamw_each",
    "attention",
    "begin_step",
    "decode_attention",
    "dequantize",
    "end_step",
    "gae",
    "geglu",
    "group_advantages",
    "kl_estimate",
    "layer_norm",
    "left_padded_attention",
    "left_padding",
    "linear",
    "linear_cross_entropy",
    "linear_logprob",
    "linear_logprob_with_reference",
    "linear_ppo_loss",
    "linear_preference",
    "lora_linear",
    "masked_mean",
    "masked_moments",
    "ppo_loss",
    "quantize",
    "rms_norm",
    "rope",
    "rope_cache",
    "rope_inplace",
    "sample",
    "swiglu",
    "using",
    "weighted_kl",
    "whiten",
]
