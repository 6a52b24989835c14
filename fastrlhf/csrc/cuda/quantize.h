#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

namespace fastrlhf {

// What the addresses of a weight are of.
enum class WeightType { FLOAT32, BFLOAT16, FLOAT16 };

// All return a cudaError_t. Addresses: the weight, its codes, and int8's scales or NF4's maxima and thresholds.
int launch_quantize(WeightType type, bool nf4, const std::array<uintptr_t, 4>& addresses, int64_t rows,
                    int64_t columns, cudaStream_t stream);

// Addresses: codes, scales, and for NF4 scale_scales, offset and the code books; then the weight.
int launch_dequantize(WeightType type, bool nf4, const std::array<uintptr_t, 7>& addresses, int64_t rows,
                      int64_t columns, cudaStream_t stream);

}  // namespace fastrlhf
