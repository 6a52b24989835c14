// The logit from which on a filter keeps tokens, without a sort of the row: bisection by sums over the whole row until
// few tokens are left between the bounds, and a sort of those.
#pragma once

#include <algorithm>

#include "simd.h"

namespace fastrlhf {

constexpr int MAX_CANDIDATES = 512;
constexpr int HALVINGS_OF_VALUES = 14;  // then of the bits, which ends whatever the distribution

struct Candidate {
  float logit, weight;
};

// How many tokens have a logit of at least some value, and what they weigh.
struct Weighed {
  int64_t count;
  double weight;
};

// A row's logits and the weights of its tokens (null: one each), both padded with -inf and zero to vectors.
struct WeightedRow {
  const float *logits, *weights;
  int64_t columns;
};

FASTRLHF_INLINE Weighed weigh_from(const WeightedRow& row, float least) {
  i8 count{};
  LaneSum weight;
  for (int64_t at = 0; at < row.columns; at += LANES) {
    const i8 hit = load(row.logits + at, LANES) >= f8{} + least;
    count -= hit;
    if (row.weights) weight.add(hit ? load(row.weights + at, LANES) : f8{});
  }
  int64_t counted = 0;
  for (int lane = 0; lane < LANES; ++lane) counted += count[lane];
  return {counted, row.weights ? weight.total() : (double)counted};
}

// Integers in the order of the floats, and back.
FASTRLHF_INLINE int32_t to_rank(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof x);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

FASTRLHF_INLINE float from_rank(int32_t rank) {
  const int32_t bits = rank ^ ((rank >> 31) & 0x7fffffff);
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest logit such that the tokens from it on weigh at least `target`, which is more than zero; all from `lowest`
// on weigh that much. Every sum is exact, and so is the result.
FASTRLHF_INLINE float threshold(const WeightedRow& row, float lowest, float largest, double target) {
  // from `low` on they weigh enough, from `high` on they do not
  float high = from_rank(to_rank(largest) + 1), low = largest;
  Weighed from_low{}, from_high{};
  for (float distance = 1;; distance *= 2) {
    low = largest - distance > lowest ? largest - distance : lowest;
    from_low = weigh_from(row, low);
    if (from_low.weight >= target || low == lowest) break;
    high = low;
    from_high = from_low;
  }
  for (int halvings = 0; from_low.count - from_high.count > MAX_CANDIDATES; ++halvings) {
    float middle = low + (high - low) * 0.5f;
    if (halvings >= HALVINGS_OF_VALUES || !(middle > low && middle < high)) {
      middle = from_rank((int32_t)(((int64_t)to_rank(low) + to_rank(high)) >> 1));
      if (!(middle > low)) return low;  // neighbours: all that are left are equal
    }
    const Weighed sum = weigh_from(row, middle);
    if (sum.weight >= target) {
      low = middle;
      from_low = sum;
    } else {
      high = middle;
      from_high = sum;
    }
  }

  Candidate candidates[MAX_CANDIDATES];
  int count = 0;
  for (int64_t at = 0; at < row.columns; at += LANES) {
    const f8 x = load(row.logits + at, LANES);
    const i8 hit = (x >= f8{} + low) & (x < f8{} + high);
    if (!any(hit)) continue;
    for (int lane = 0; lane < LANES; ++lane) {
      if (hit[lane]) candidates[count++] = {x[lane], row.weights ? row.weights[at + lane] : 1.0f};
    }
  }
  std::sort(candidates, candidates + count,
            [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  double weight = from_high.weight;
  for (int i = 0; i < count; ++i) {
    weight += candidates[i].weight;
    if (weight >= target) return candidates[i].logit;
  }
  return low;
}

}  // namespace fastrlhf
