// The arrays of `ppo_loss`, for every processor. T is the dtype of the inputs and of the gradients.
#pragma once

namespace fastrlhf {

template <class T>
struct PPOLossArrays {
  const T *logprobs, *old_logprobs, *advantages;
  const bool* mask;
  const T *values, *old_values, *returns;  // null, all three, without a value loss
  const bool* value_mask;
  const T *entropy, *ref_logprobs, *weights, *token_weights;  // each may be null
  const double* denominators;                                 // [2], policy's and value's
  float* loss;
  double* stats;                                  // [STATS]
  T *grad_logprobs, *grad_values, *grad_entropy;  // the last two unused where values or entropy are null
};

}  // namespace fastrlhf
