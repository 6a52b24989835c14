// What the deviation of a score from its group's mean is divided by, written once for every processor.
#pragma once

#include "inline.h"

namespace fastrlhf {

// The order of `GROUP_ESTIMATORS` in fastrlhf/kernels/group_advantages.py, from one.
enum GroupEstimator { GRPO = 1, DR_GRPO, RLOO };

// count scores; rest: what rounding left of their mean, itself the mean of the deviations; squares: of these, the sum.
FASTRLHF_INLINE double group_divisor(int estimator, double count, double rest, double squares,
                                     double epsilon) {
  if (estimator == RLOO) return (count - 1) / count;
  if (estimator == DR_GRPO) return 1;
  const double variance = (squares - rest * rest * count) / (count > 1 ? count - 1 : 1);
  return sqrt(variance > 0 ? variance : 0) + epsilon;
}

}  // namespace fastrlhf
