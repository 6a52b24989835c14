// The launch of `group_advantages`: no synchronisation, and a cudaError_t (as an int) instead of an exception.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

namespace fastrlhf {

// addresses: scores, mask, order, starts (each of these three may be zero), advantages, moments.
// scratch: float64 [groups, 3].
int launch_group_advantages(bool bfloat16, const std::array<uintptr_t, 6>& addresses, uintptr_t scratch,
                            int64_t groups, int64_t group_size, int estimator, double epsilon,
                            cudaStream_t stream);

}  // namespace fastrlhf
