// Three passes over the scores, with a table of the groups, on one thread: a rollout's scores are few.
#include "group_advantages.h"

#include <cmath>
#include <vector>

#include "../group_advantages_divisor.h"

namespace fastrlhf {
namespace {

struct Group {
  double count = 0, mean = 0, rest = 0, squares = 0, divisor = 1;
};

}  // namespace

void group_advantages(const float* scores, const bool* mask, const int64_t* groups, float* advantages,
                      double* moments, int64_t rows, int64_t group_size, int estimator, double epsilon) {
  std::vector<Group> table(groups ? rows : rows / group_size);
  // Calls step(row, its group) for the rows that count.
  const auto for_rows = [&](auto step) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t id = groups ? groups[row] : row / group_size;
      if (id >= 0 && id < (int64_t)table.size() && (!mask || mask[row])) step(row, table[id]);
    }
  };

  for_rows([&](int64_t row, Group& group) {
    group.count += 1;
    group.mean += scores[row];
  });
  for (Group& group : table) group.mean /= group.count;

  for_rows([&](int64_t row, Group& group) {
    const double deviation = scores[row] - group.mean;
    group.rest += deviation;
    group.squares += deviation * deviation;
  });
  for (Group& group : table) {
    group.rest /= group.count;
    group.divisor = group_divisor(estimator, group.count, group.rest, group.squares, epsilon);
  }

  // Zero for rows that do not count, NaN for those whose group does not exist.
  for (int64_t row = 0; row < rows; ++row) {
    const bool exists = !groups || (groups[row] >= 0 && groups[row] < rows);
    advantages[row] = exists ? 0.0f : NAN;
  }
  moments[0] = moments[1] = moments[2] = 0;
  for_rows([&](int64_t row, const Group& group) {
    const double advantage = (scores[row] - group.mean - group.rest) / group.divisor;
    advantages[row] = (float)advantage;
    moments[0] += 1;
    moments[1] += advantage;
    moments[2] += advantage * advantage;
  });
}

}  // namespace fastrlhf
