// The CUDA launches: no synchronisation, and a cudaError_t (as an int) instead of an exception. `scratch` is
// device memory for the partial sums of the first pass; `bfloat16` says which dtype the addresses are of.
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "../ppo_loss_arrays.h"
#include "../ppo_loss_token.h"

namespace fastrlhf {

// scratch: float64 [rows, 3].
int launch_gae(bool bfloat16, const std::array<uintptr_t, 7>& addresses, uintptr_t scratch, int64_t rows,
               int64_t columns, float gamma, float gamma_lam, cudaStream_t stream);

// The number of rows of scratch, float64 [rows, SUMS], that `launch_ppo_loss` needs.
int64_t ppo_loss_scratch_rows(int64_t tokens);

template <class T>
int launch_ppo_loss(const PPOLossArrays<T>& arrays, uintptr_t scratch, int64_t tokens,
                    const PPOLossOptions& options, cudaStream_t stream);

}  // namespace fastrlhf
