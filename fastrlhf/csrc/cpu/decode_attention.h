// Attention of one new token a row over a paged cache, on the CPU.
#pragma once

#include "../decode_problem.h"

namespace fastrlhf {

// output: [rows, heads, width], contiguous. A length or a block out of range makes the row NaN, and is not read.
void decode_attention(const DecodeProblem<float>& problem, float* output);

}  // namespace fastrlhf
