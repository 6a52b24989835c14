#pragma once

#include <algorithm>
#include <vector>

#include "../adamw_update.h"

namespace fastrlhf {

// Tensors of one launch: their table has to fit into a kernel's parameters, of which there are 4 KB.
constexpr int ADAMW_TENSORS = 64;

// Parameters, gradients, both moments and the bfloat16 copy, which may be zero.
using AdamWTensor = std::array<uintptr_t, 5>;

template <class G>
struct AdamWTable {
  float* parameters[ADAMW_TENSORS];
  const G* gradients[ADAMW_TENSORS];
  float *exp_avg[ADAMW_TENSORS], *exp_avg_sq[ADAMW_TENSORS];
  uint16_t* bfloat16_copy[ADAMW_TENSORS];
  int64_t size[ADAMW_TENSORS];
  int first_block[ADAMW_TENSORS + 1];
  bool aligned[ADAMW_TENSORS];
  const float* grad_norm;
  int count;
};

// Returns a cudaError_t. `bfloat16` says which dtype the gradients are of.
int launch_adamw_each(bool bfloat16, const std::vector<AdamWTensor>& tensors,
                      const std::vector<int64_t>& sizes, uintptr_t grad_norm, const AdamWNumbers& numbers,
                      uintptr_t stream);

}  // namespace fastrlhf
