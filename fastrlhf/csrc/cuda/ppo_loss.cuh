// The clipped PPO objective with its statistics and gradients: one pass over the tokens, then one block that
// adds up.
#pragma once

#include "number.cuh"
#include "reduce.cuh"

#include "../ppo_loss_arrays.h"
#include "../ppo_loss_token.h"

namespace fastrlhf {

constexpr int PPO_LOSS_THREADS = 256;
constexpr int64_t PPO_LOSS_TOKENS_PER_BLOCK = 4 * PPO_LOSS_THREADS;
constexpr int64_t PPO_LOSS_MAX_BLOCKS = 1024;

// Depends on the number of tokens alone, not on the card: so do the order of summation and the bits of the
// sums.
inline int64_t ppo_loss_blocks(int64_t tokens) {
  const int64_t blocks = (tokens + PPO_LOSS_TOKENS_PER_BLOCK - 1) / PPO_LOSS_TOKENS_PER_BLOCK;
  return blocks < 1 ? 1 : blocks > PPO_LOSS_MAX_BLOCKS ? PPO_LOSS_MAX_BLOCKS : blocks;
}

// Grid: ppo_loss_blocks(tokens) blocks of PPO_LOSS_THREADS. block_sums_out: [blocks, SUMS], for
// `ppo_loss_finish`.
template <class T>
__global__ void __launch_bounds__(PPO_LOSS_THREADS)
    ppo_loss_kernel(PPOLossArrays<T> a, double* __restrict__ block_sums_out, int64_t tokens,
                    PPOLossOptions options) {
  const PPOLossFactors factors = ppo_loss_factors(a.denominators, options);
  double sums[SUMS] = {};
  for (int64_t at = (int64_t)blockIdx.x * PPO_LOSS_THREADS + threadIdx.x; at < tokens;
       at += (int64_t)gridDim.x * PPO_LOSS_THREADS) {
    const bool keep = a.mask[at], keep_value = a.value_mask[at];
    float grad_logprob = 0, grad_entropy = 0, grad_value = 0;
    if (keep) {
      const float logprob = to_float(a.logprobs[at]);
      const float weight = a.weights ? to_float(a.weights[at]) : 1.0f;
      const float token_weight = a.token_weights ? to_float(a.token_weights[at]) : 1.0f;
      const float share = token_weight * factors.per_token;
      const PolicyTerms<float> policy =
          policy_terms(logprob, to_float(a.old_logprobs[at]), to_float(a.advantages[at]), weight, options);
      float objective = policy.loss, slope = policy.slope;
      sums[POLICY_LOSS] += policy.loss;
      sums[APPROX_KL] += policy.approx_kl;
      sums[RATIO] += policy.ratio;
      sums[CLIPPED] += policy.clipped;
      sums[TOKENS] += 1;
      if (a.entropy) {
        const float entropy = to_float(a.entropy[at]);
        if (factors.entropy_coef != 0) objective -= factors.entropy_coef * entropy;
        sums[ENTROPY] += entropy;
        grad_entropy = -factors.entropy_coef * share;
      }
      if (a.ref_logprobs) {
        const KLTerms<float> kl = kl_terms(logprob, to_float(a.ref_logprobs[at]), options.kl_estimator);
        if (factors.kl_coef != 0) {
          objective += factors.kl_coef * kl.kl;
          slope += factors.kl_coef * kl.slope;
        }
        sums[KL] += kl.kl;
      }
      sums[OBJECTIVE] += token_weight * objective;
      grad_logprob = share * slope;
    }
    if (keep_value) {
      sums[VALUE_TOKENS] += 1;
      if (a.values) {
        const ValueTerms<float> value =
            value_terms(to_float(a.values[at]), to_float(a.old_values[at]), to_float(a.returns[at]), options);
        grad_value = factors.per_value * value.slope;
        sums[VALUE_LOSS] += value.loss;
        sums[VALUE_CLIPPED] += value.clipped;
      }
    }
    a.grad_logprobs[at] = from_float<T>(grad_logprob);
    if (a.values) a.grad_values[at] = from_float<T>(grad_value);
    if (a.entropy) a.grad_entropy[at] = from_float<T>(grad_entropy);
  }
  block_sums<SUMS, PPO_LOSS_THREADS>(sums);
  if (threadIdx.x == 0) {
    for (int i = 0; i < SUMS; ++i) block_sums_out[(int64_t)blockIdx.x * SUMS + i] = sums[i];
  }
}

// Grid: one block of PPO_LOSS_THREADS.
__global__ void __launch_bounds__(PPO_LOSS_THREADS)
    ppo_loss_finish(const double* __restrict__ block_sums_in, int64_t blocks,
                    const double* __restrict__ denominators, float* __restrict__ loss,
                    double* __restrict__ stats, PPOLossOptions options) {
  double sums[SUMS];
  sum_parts<SUMS, PPO_LOSS_THREADS>(block_sums_in, blocks, sums);
  if (threadIdx.x == 0) {
    for (int i = 0; i < STATS; ++i) stats[i] = sums[i];
    *loss = ppo_loss_from_sums(sums, denominators[0], denominators[1], options);
  }
}

}  // namespace fastrlhf
