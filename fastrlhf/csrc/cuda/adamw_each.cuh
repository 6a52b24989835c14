// AdamW of many tensors in a launch: each block finds its tensor in a table among the kernel's parameters.
#pragma once

#include "adamw.cuh"
#include "adamw_each.h"

namespace fastrlhf {

static_assert(sizeof(AdamWTable<float>) + sizeof(AdamWNumbers) <= 4096, "a kernel's parameters");

// The table of at most ADAMW_TENSORS tensors from the `start`-th on.
template <class G>
AdamWTable<G> adamw_table(const std::vector<AdamWTensor>& tensors, const std::vector<int64_t>& sizes,
                          uintptr_t grad_norm, size_t start) {
  AdamWTable<G> table{};
  table.grad_norm = (const float*)grad_norm;
  table.count = (int)std::min(tensors.size() - start, (size_t)ADAMW_TENSORS);
  for (int t = 0; t < table.count; ++t) {
    const AdamWTensor& from = tensors[start + t];
    const AdamWArrays<G> arrays =
        adamw_arrays<G>({from[0], from[1], from[2], from[3], from[4], 0, 0, 0, grad_norm});
    table.parameters[t] = arrays.parameters;
    table.gradients[t] = arrays.gradients;
    table.exp_avg[t] = arrays.exp_avg;
    table.exp_avg_sq[t] = arrays.exp_avg_sq;
    table.bfloat16_copy[t] = arrays.bfloat16_copy;
    table.size[t] = sizes[start + t];
    table.aligned[t] = adamw_aligned(arrays);
    table.first_block[t + 1] = table.first_block[t] + (int)adamw_blocks(sizes[start + t]);
  }
  return table;
}

// Grid: the table's blocks, of ADAMW_THREADS. An empty tensor has none.
template <class G>
__global__ void __launch_bounds__(ADAMW_THREADS)
    adamw_each_kernel(const AdamWTable<G> table, AdamWNumbers numbers) {
  const int block = (int)blockIdx.x;
  int t = 0;
#pragma unroll
  for (int step = ADAMW_TENSORS / 2; step > 0; step /= 2) {
    if (t + step < table.count && table.first_block[t + step] <= block) t += step;
  }
  const AdamWArrays<G> arrays{table.parameters[t],
                              table.gradients[t],
                              table.exp_avg[t],
                              table.exp_avg_sq[t],
                              table.bfloat16_copy[t],
                              nullptr,
                              nullptr,
                              nullptr,
                              table.grad_norm};
  adamw_block(arrays, table.size[t], numbers, table.aligned[t], block - table.first_block[t]);
}

}  // namespace fastrlhf
