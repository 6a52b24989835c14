// Log-probabilities and entropies from hidden states, and their gradients. Pointers are to contiguous float32 arrays
// unless they say otherwise; N rows, V words, D the width.
#pragma once

#include <cstdint>

namespace fastrlhf {

struct LinearLogprobHead {
  const float *hidden_states, *weight, *bias;  // [N, D], [V, D], [V] or null
  const int64_t* targets;                      // [N], in [0, V)
  int64_t rows, words, width;
  float temperature, softcap;  // no softcap: 0
};

struct LinearLogprobOutputs {
  float *logprobs, *entropy;             // [N]
  double* logsumexp;                     // [N]
  float* top_logprobs;                   // [N], of the likeliest words; may be null
  float *logprob_slope, *entropy_slope;  // [N, D], each may be null (the second if the first is)
  float* logits;                         // held whole, as `held_logits` says; null unless the slopes are
};

struct LinearLogprobGradients {
  const float *grad_logprobs, *grad_entropy;     // [N]; the second may be null
  const float* entropy;                          // [N]
  const double* logsumexp;                       // [N]
  float *grad_hidden, *grad_weight, *grad_bias;  // [N, D], [V, D], [V]; the last two may be null
  float* logits;  // those that the forward held, to be overwritten; null: computed again
  bool add;       // to grad_weight and grad_bias, which are overwritten otherwise
};

// Floats of scratch memory, aligned to 64 bytes, that the functions below want. `slopes` is 0, 1 or 2.
int64_t linear_logprob_scratch(const LinearLogprobHead& head, int slopes, int threads);
int64_t linear_logprob_backward_scratch(const LinearLogprobHead& head, bool held);

// Floats of the logits of all rows: panels of T::COLUMNS rows, each `[words][T::COLUMNS]`, the words in whole stripes.
int64_t held_logits(const LinearLogprobHead& head);

void linear_logprob(const LinearLogprobHead& head, const LinearLogprobOutputs& out, float* scratch,
                    int threads);
void linear_logprob_backward(const LinearLogprobHead& head, const LinearLogprobGradients& gradients,
                             float* scratch, int threads);

}  // namespace fastrlhf
