#pragma once

#include "../adamw_update.h"

namespace fastrlhf {

// Returns a cudaError_t. `bfloat16` says which dtype the gradients are of.
int launch_adamw(bool bfloat16, const std::array<uintptr_t, ADAMW_ARRAYS>& addresses, int64_t size,
                 const AdamWNumbers& numbers, uintptr_t stream);

}  // namespace fastrlhf
