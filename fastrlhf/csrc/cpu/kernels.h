// The CPU kernels. Pointers are to contiguous arrays; the optional ones may be null.
#pragma once

#include <cstdint>

#include "../ppo_loss_arrays.h"
#include "simd.h"
#include "../ppo_loss_token.h"

namespace fastrlhf {

void gae(const float* rewards, const float* values, const bool* mask, const bool* moments_mask,
         float* advantages, float* returns, double* moments, int64_t rows, int64_t columns, float gamma,
         float gamma_lam);

void ppo_loss(const PPOLossArrays<float>& arrays, int64_t tokens, const PPOLossOptions& options);

}  // namespace fastrlhf
