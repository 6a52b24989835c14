// What the PPO objective does to one token, written once for every processor.
//
// F is a float (a CUDA thread) or a vector of floats (the CPU kernel); comparisons give M, which selects lane
// by lane. NaN goes where it goes in the reference: a comparison with NaN is false, and minimum and maximum
// hand NaN on.
#pragma once

#include "inline.h"

namespace fastrlhf {

struct PPOLossOptions {
  float clip_low, clip_high;  // 1 - cliprange, 1 + cliprange_high
  float dual_clip, log_ratio_clamp, cliprange_value;
  double vf_coef, entropy_coef, kl_coef;
  int kl_estimator;  // 1, 2 or 3
};

// What multiplies the slopes of each token.
struct PPOLossFactors {
  float entropy_coef, kl_coef, per_token, per_value;
};

FASTRLHF_INLINE PPOLossFactors ppo_loss_factors(const double* denominators, const PPOLossOptions& options) {
  return {(float)options.entropy_coef, (float)options.kl_coef, (float)(1 / denominators[0]),
          (float)(options.vf_coef / denominators[1])};
}

// The order of `Stat` in fastrlhf/kernels/ppo_loss.py, and one sum more.
enum Stat {
  POLICY_LOSS,
  VALUE_LOSS,
  ENTROPY,
  KL,
  APPROX_KL,
  RATIO,
  CLIPPED,
  VALUE_CLIPPED,
  TOKENS,
  VALUE_TOKENS,
  STATS,
  OBJECTIVE = STATS,  // of policy loss, entropy and KL with their coefficients, weighted by token_weights
  SUMS
};

template <class F>
using Mask = decltype(F{} < F{});

template <class F>
struct PolicyTerms {
  F loss, approx_kl, ratio, slope;
  Mask<F> clipped;
};

template <class F>
struct KLTerms {
  F kl, slope;
};

template <class F>
struct ValueTerms {
  F loss, slope;
  Mask<F> clipped;
};

template <class F>
FASTRLHF_INLINE F maximum(F a, F b) {
  return (a > b) | (a != a) ? a : b;
}

template <class F>
FASTRLHF_INLINE F minimum(F a, F b) {
  return (a < b) | (a != a) ? a : b;
}

// The slopes below are derivatives of the loss (of the KL) in `logprob` or `value`, before coefficients, weights of
// tokens and denominators.
template <class F>
FASTRLHF_INLINE PolicyTerms<F> policy_terms(F logprob, F old_logprob, F advantage, F weight,
                                            const PPOLossOptions& options) {
  const F zero{};
  F log_ratio = logprob - old_logprob;
  const Mask<F> inside = absolute(log_ratio) <= zero + options.log_ratio_clamp;
  log_ratio = minimum(maximum(log_ratio, zero - options.log_ratio_clamp), zero + options.log_ratio_clamp);
  const F ratio = exponential(log_ratio);
  const F unclipped = -advantage * ratio;
  const F clipped = -advantage * minimum(maximum(ratio, zero + options.clip_low), zero + options.clip_high);
  const Mask<F> is_clipped = clipped > unclipped;
  const F unbounded = maximum(unclipped, clipped);
  const F bound = advantage < zero ? -advantage * options.dual_clip : zero + INFINITY;
  const Mask<F> is_bounded = unbounded > bound;
  const F slope = is_clipped | is_bounded ? zero : weight * unclipped;

  PolicyTerms<F> terms;
  terms.loss = weight * minimum(unbounded, bound);
  terms.approx_kl = 0.5f * (log_ratio * log_ratio);
  terms.ratio = ratio;
  terms.clipped = is_clipped;
  terms.slope = inside ? slope : zero;
  return terms;
}

template <class F>
FASTRLHF_INLINE KLTerms<F> kl_terms(F logprob, F ref_logprob, int estimator) {
  const F log_ratio = ref_logprob - logprob;
  if (estimator == 1) return {-log_ratio, F{} + 1.0f};
  if (estimator == 2) return {0.5f * (log_ratio * log_ratio), logprob - ref_logprob};
  const Expm1<F> e = expm1_and_rest(log_ratio);
  return {e.rest, -e.expm1};
}

template <class F>
FASTRLHF_INLINE ValueTerms<F> value_terms(F value, F old_value, F target, const PPOLossOptions& options) {
  const F zero{};
  const F low = old_value - options.cliprange_value, high = old_value + options.cliprange_value;
  const F difference = value - target;
  const F clipped_difference = minimum(maximum(value, low), high) - target;
  const F square = difference * difference, clipped_square = clipped_difference * clipped_difference;

  ValueTerms<F> terms;
  terms.clipped = clipped_square > square;
  terms.loss = 0.5f * maximum(square, clipped_square);
  terms.slope = terms.clipped ? zero : difference;
  if (options.vf_coef == 0) terms.slope = zero;  // only watched: zero times infinity would be NaN
  return terms;
}

// The loss from the sums over all kept tokens. A value loss whose coefficient is zero is only watched, and stays
// out: zero times a sum that overflowed would be NaN.
FASTRLHF_INLINE float ppo_loss_from_sums(const double* sums, double denominator, double value_denominator,
                                         const PPOLossOptions& options) {
  double loss = sums[OBJECTIVE] / denominator;
  if (options.vf_coef != 0) loss += options.vf_coef * sums[VALUE_LOSS] / value_denominator;
  return (float)loss;
}

}  // namespace fastrlhf
