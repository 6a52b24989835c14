// Attention's forward: one block of queries at a time against tiles of keys, with an online softmax.
#include <limits>

#include "attention_tile.h"

namespace fastrlhf {
namespace {

constexpr int ROWS = 192;  // about how many a block of queries has
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

// What one thread works in. Scores are those of a strip, six rows against one tile of keys.
struct Workspace {
  std::vector<float> queries, keys, values, outputs, maxima, sums;
  float scores[STRIP * KEYS];

  Workspace(int64_t rows, int64_t width)
      : queries(rows * width),
        keys(KEYS * width),
        values(KEYS * rounded_up(width, PANEL)),
        outputs(rows * rounded_up(width, PANEL)),
        maxima(rows),
        sums(rows) {}
};

struct BlockOfSequence {
  Sequence sequence;
  int64_t first, last;
};

// The rows of a strip before and after their maxima are known: scores become weights, `factors` what the
// outputs so far are multiplied with.
FASTRLHF_INLINE void weigh(float* scores, const StripColumns& columns, float* maxima, float* sums,
                           float (&factors)[STRIP]) {
  for (int row = 0; row < STRIP; ++row) {
    float* of_row = scores + row * KEYS;
    f8 largest = broadcast(maxima[row]);
    for (int64_t c = columns.begin; c < columns.end; c += LANES) {
      const f8 score = load8(of_row + c);
      largest = score > largest ? score : largest;
    }
    float maximum = largest[0];
    for (int lane = 1; lane < LANES; ++lane) maximum = std::max(maximum, (float)largest[lane]);
    // nothing seen yet: any finite number will do
    const float reference = maximum == MINUS_INFINITY ? 0.0f : maximum;
    f8 sum{};
    for (int64_t c = columns.begin; c < columns.end; c += LANES) {
      const f8 weight = softmax_exponential(load8(of_row + c) - reference);
      sum += weight;
      store8(of_row + c, weight);
    }
    factors[row] = softmax_exponential(broadcast(maxima[row] - reference))[0];
    sums[row] = sums[row] * factors[row] + sum_of_lanes(sum);
    maxima[row] = maximum;
  }
}

FASTRLHF_INLINE void block_of_queries(const AttentionProblem& p, const BlockOfSequence& item,
                                      Workspace& space, float* output, float* lse) {
  const int64_t group = p.heads / p.key_heads, padded = rounded_up(p.width, PANEL);
  const Sequence& sequence = item.sequence;
  const QueryBlock block = {item.first, item.last - item.first, group, sequence.key_head * group};
  pack_rows(p.query, block, p.width, p.width, p.scale, space.queries.data());
  std::fill(space.outputs.begin(), space.outputs.end(), 0.0f);
  std::fill(space.maxima.begin(), space.maxima.end(), MINUS_INFINITY);
  std::fill(space.sums.begin(), space.sums.end(), 0.0f);

  const int64_t first_seen = p.window ? std::max(sequence.begin, item.first - p.window + 1) : sequence.begin;
  for (int64_t first_key = first_seen; first_key < item.last; first_key += KEYS) {
    const int64_t keys = std::min<int64_t>(KEYS, item.last - first_key);
    pack_transposed(p.key, first_key, keys, sequence.key_head, p.width, space.keys.data());
    pack_panels(p.value, first_key, keys, sequence.key_head, p.width, space.values.data());
    for (int64_t strip = 0; strip < block.strips(); ++strip) {
      const int64_t first_row = strip * STRIP;
      const StripColumns columns(Seen(block.position(first_row), first_key, keys, p.window),
                                 Seen(block.position(first_row + STRIP - 1), first_key, keys, p.window));
      if (columns.begin >= columns.end) continue;
      float* scores = space.scores;
      multiply({space.queries.data() + first_row * p.width, p.width, 1},
               {space.keys.data(), PANEL * p.width, PANEL}, columns.begin, columns.end, p.width,
               [&](int row, int64_t column, f8 score) __attribute__((always_inline)) {
                 if (p.softcap != 0) score = p.softcap * hyperbolic_tangent(score / p.softcap);
                 store8(scores + row * KEYS + column, score);
               });
      if (!columns.whole) {
        for (int row = 0; row < STRIP; ++row) {
          const Seen seen(block.position(first_row + row), first_key, keys, p.window);
          float* of_row = scores + row * KEYS;
          for (int64_t c = columns.begin; c < columns.end; c += LANES)
            store8(of_row + c, where_seen(seen, c, load8(of_row + c), MINUS_INFINITY));
        }
      }
      float factors[STRIP];
      weigh(scores, columns, &space.maxima[first_row], &space.sums[first_row], factors);
      float* outputs = space.outputs.data() + first_row * padded;
      multiply({scores + columns.begin, KEYS, 1},
               {space.values.data() + columns.begin * PANEL, PANEL * KEYS, PANEL}, 0, padded,
               columns.end - columns.begin,
               [&](int row, int64_t column, f8 sum) __attribute__((always_inline)) {
                 float* to = outputs + row * padded + column;
                 store8(to, load8(to) * factors[row] + sum);
               });
    }
  }

  for (int64_t row = 0; row < block.rows(); ++row) {
    const int64_t at = block.position(row) * p.heads + block.head_of(row);
    const float sum = space.sums[row];
    lse[at] = space.maxima[row] + std::log(sum);
    for (int64_t d = 0; d < p.width; d += LANES) {
      store_columns(output + at * p.width + d, load8(space.outputs.data() + row * padded + d) / sum,
                    p.width - d);
    }
  }
}

typedef void Block(const AttentionProblem&, const BlockOfSequence&, Workspace&, float*, float*);

void block_portable(const AttentionProblem& p, const BlockOfSequence& item, Workspace& space, float* output,
                    float* lse) {
  block_of_queries(p, item, space, output, lse);
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void block_avx2(const AttentionProblem& p, const BlockOfSequence& item, Workspace& space,
                              float* output, float* lse) {
  block_of_queries(p, item, space, output, lse);
}
#endif

}  // namespace

void attention(const AttentionProblem& problem, float* output, float* lse) {
  Block* run = block_portable;
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx2()) run = block_avx2;
#endif
  const int64_t group = problem.heads / problem.key_heads, positions = positions_per_block(group, ROWS);
  std::vector<BlockOfSequence> items;
  int64_t longest = 0;
  for (const Sequence& sequence : sequences_of(problem)) {
    for (int64_t first = sequence.begin; first < sequence.end; first += positions) {
      items.push_back({sequence, first, std::min(first + positions, sequence.end)});
      longest = std::max(longest, items.back().last - first);
    }
  }
  const int64_t count = (int64_t)items.size(), rows = rounded_up(longest * group, STRIP);
#pragma omp parallel if (count > 1)
  {
    Workspace space(rows, problem.width);
    // Blocks late in a sequence see more keys: dealt out one by one, every thread gets some of each.
#pragma omp for schedule(static, 1)
    for (int64_t i = 0; i < count; ++i) run(problem, items[i], space, output, lse);
  }
}

}  // namespace fastrlhf
