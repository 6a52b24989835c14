// What AdamW does to one parameter, written once for every processor. F is a float (a CUDA thread) or a vector
// of floats (the CPU kernel).
#pragma once

#include <array>

#include "inline.h"

namespace fastrlhf {

// The order of `adamw_numbers` in fastrlhf/kernels/adamw_numbers.py.
struct AdamWNumbers {
  float lr, grad_scale, max_norm;
  float log_beta1, log_beta2;
  float correction1, correction2;  // 1 - beta^step
  float rest1, beta2, rest2;       // 1 - beta1, beta2, 1 - beta2
  float eps, weight_decay;
};

constexpr int ADAMW_NUMBERS = 12, ADAMW_ARRAYS = 9;

// Of float32, but for the gradients (G) and the copy. The copy and the scalars may each be null.
template <class G>
struct AdamWArrays {
  float* parameters;
  const G* gradients;
  float *exp_avg, *exp_avg_sq;
  uint16_t* bfloat16_copy;
  const float *lr, *step, *grad_scale, *grad_norm;
};

template <class G>
AdamWArrays<G> adamw_arrays(const std::array<uintptr_t, ADAMW_ARRAYS>& a) {
  return {(float*)a[0],       (const G*)a[1],     (float*)a[2],       (float*)a[3],      (uint16_t*)a[4],
          (const float*)a[5], (const float*)a[6], (const float*)a[7], (const float*)a[8]};
}

inline AdamWNumbers adamw_numbers(const std::array<double, ADAMW_NUMBERS>& n) {
  return {(float)n[0], (float)n[1], (float)n[2], (float)n[3], (float)n[4],  (float)n[5],
          (float)n[6], (float)n[7], (float)n[8], (float)n[9], (float)n[10], (float)n[11]};
}

// What is the same for the whole chunk.
struct AdamWStep {
  float factor, rest1, beta2, rest2, inverse_root, eps, decay, step_size;
  bool skipped;
};

// A scalar tensor counts in place of the number of its name.
template <class G>
FASTRLHF_INLINE AdamWStep adamw_step(const AdamWArrays<G>& a, const AdamWNumbers& n) {
  const float lr = a.lr ? *a.lr : n.lr;
  const float correction1 = a.step ? -expm1f(*a.step * n.log_beta1) : n.correction1;
  const float correction2 = a.step ? -expm1f(*a.step * n.log_beta2) : n.correction2;
  AdamWStep s;
  s.factor = 1.0f / (a.grad_scale ? *a.grad_scale : n.grad_scale);
  s.skipped = false;
  if (a.grad_norm) {
    s.factor *= fminf(n.max_norm / (*a.grad_norm + 1e-6f), 1.0f);
    s.skipped = !(fabsf(*a.grad_norm) < INFINITY);
  }
  s.rest1 = n.rest1;
  s.beta2 = n.beta2;
  s.rest2 = n.rest2;
  s.inverse_root = 1.0f / sqrtf(correction2);
  s.eps = n.eps;
  s.decay = 1.0f - lr * n.weight_decay;
  s.step_size = lr / correction1;
  return s;
}

template <class F>
FASTRLHF_INLINE void adamw_update(F gradient, F& parameter, F& exp_avg, F& exp_avg_sq, const AdamWStep& s) {
  const F g = gradient * s.factor;
  exp_avg += s.rest1 * (g - exp_avg);
  exp_avg_sq = s.beta2 * exp_avg_sq + s.rest2 * (g * g);
  const F root = square_root(exp_avg_sq) * s.inverse_root + s.eps;
  parameter = s.decay * parameter - s.step_size * (exp_avg / root);
}

}  // namespace fastrlhf
