// The launch of CUDA's decode_attention; see kernels.h for what launches have in common.
#pragma once

#include <cuda_runtime_api.h>

#include "../decode_problem.h"

namespace fastrlhf {

// sums: [rows, heads, splits, 2], outputs: [rows, heads, splits, width], float32; null where splits is one.
template <class T>
int launch_decode_attention(const DecodeProblem<T>& problem, int64_t splits, T* output, float* sums,
                            float* outputs, cudaStream_t stream);

}  // namespace fastrlhf
