// From the tuples that the launchers of `ppo_loss` hand over to the kernels' arguments, for both modules.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "ppo_loss_arrays.h"
#include "ppo_loss_token.h"

namespace fastrlhf {

constexpr int PPO_LOSS_ARRAYS = 18, PPO_LOSS_NUMBERS = 8;

// In the order of the struct; zero for None.
template <class T>
PPOLossArrays<T> ppo_loss_arrays(const std::array<uintptr_t, PPO_LOSS_ARRAYS>& a) {
  return {(const T*)a[0],
          (const T*)a[1],
          (const T*)a[2],
          (const bool*)a[3],
          (const T*)a[4],
          (const T*)a[5],
          (const T*)a[6],
          (const bool*)a[7],
          (const T*)a[8],
          (const T*)a[9],
          (const T*)a[10],
          (const T*)a[11],
          (const double*)a[12],
          (float*)a[13],
          (double*)a[14],
          (T*)a[15],
          (T*)a[16],
          (T*)a[17]};
}

// cliprange, cliprange_high, dual_clip, log_ratio_clamp, cliprange_value, vf_coef, entropy_coef, kl_coef, as
// the operation takes them. One is added in float64, as the reference does.
inline PPOLossOptions ppo_loss_options(const std::array<double, PPO_LOSS_NUMBERS>& n, int kl_estimator) {
  return {(float)(1 - n[0]), (float)(1 + n[1]), (float)n[2], (float)n[3], (float)n[4], n[5], n[6], n[7],
          kl_estimator};
}

}  // namespace fastrlhf
