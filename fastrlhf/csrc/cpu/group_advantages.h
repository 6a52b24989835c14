// Advantages of responses over the others of their group.
#pragma once

#include <cstdint>

namespace fastrlhf {

// Arrays of `rows`. mask may be null (all rows count), and so may groups: then each group_size rows are one. moments:
// [3]. estimator: a GroupEstimator.
void group_advantages(const float* scores, const bool* mask, const int64_t* groups, float* advantages,
                      double* moments, int64_t rows, int64_t group_size, int estimator, double epsilon);

}  // namespace fastrlhf
