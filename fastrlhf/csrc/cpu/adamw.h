#pragma once

#include "simd.h"
#include "../adamw_update.h"

namespace fastrlhf {

// Gradients of float32, or of bfloat16 as its 16 bits.
void adamw(const AdamWArrays<float>& arrays, int64_t size, const AdamWNumbers& numbers);
void adamw(const AdamWArrays<uint16_t>& arrays, int64_t size, const AdamWNumbers& numbers);

}  // namespace fastrlhf
