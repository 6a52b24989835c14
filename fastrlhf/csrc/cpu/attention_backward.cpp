// Attention's backward: the scores are computed again from the log-sum-exp that the forward kept, a tile of
// keys against one block of queries at a time. A thread has a sequence's key-value head to itself, so that
// the gradients of query, key and value all come from one pass over the scores, in a fixed order.
#include <limits>

#include "attention_tile.h"

namespace fastrlhf {
namespace {

constexpr int ROWS = 96;  // about how many a block of queries has

struct Gradients {
  const HeadsIn& output;
  float *query, *key, *value;
};

struct Workspace {
  std::vector<float> queries, grads, lse, deltas, weights, grad_scores;
  std::vector<float> keys_transposed, values_transposed, keys, grad_keys, grad_values;

  Workspace(int64_t rows, int64_t width, int64_t padded)
      : queries(rows * padded),
        grads(rows * padded),
        lse(rows),
        deltas(rows),
        weights(rows * KEYS),
        grad_scores(rows * KEYS),
        keys_transposed(KEYS * width),
        values_transposed(KEYS * width),
        keys(KEYS * padded),
        grad_keys(KEYS * padded),
        grad_values(KEYS * padded) {}
};

struct KeyTile {
  int64_t first, keys, head;
};

FASTRLHF_INLINE void pack_block(const AttentionProblem& p, const HeadsIn& grad_output, const float* output,
                                const float* lse, const QueryBlock& block, int64_t padded, Workspace& space) {
  pack_rows(p.query, block, p.width, padded, p.scale, space.queries.data());
  pack_rows(grad_output, block, p.width, padded, 1.0f, space.grads.data());
  for (int64_t row = 0; row < block.strips() * STRIP; ++row) {
    const int64_t at = block.position(row) * p.heads + block.head_of(row);
    f8 delta{};
    for (int64_t d = 0; d < p.width; d += LANES)
      delta +=
          load8(space.grads.data() + row * padded + d) * load_columns(output + at * p.width + d, p.width - d);
    space.deltas[row] = sum_of_lanes(delta);
    // a row after the last one weighs nothing
    space.lse[row] = row < block.rows() ? lse[at] : std::numeric_limits<float>::infinity();
  }
}

// The weights of a strip's rows and the gradients of their scores; zero wherever a row does not see a key.
FASTRLHF_INLINE void strip_scores(const AttentionProblem& p, const QueryBlock& block, const KeyTile& tile,
                                  const StripColumns& columns, int64_t first_row, int64_t padded,
                                  Workspace& space) {
  float* weights = space.weights.data() + first_row * KEYS;
  float* grad_scores = space.grad_scores.data() + first_row * KEYS;
  const float *lse = &space.lse[first_row], *deltas = &space.deltas[first_row];
  const int64_t filled = rounded_up(rounded_up(tile.keys, STRIP), LANES);
  for (int row = 0; row < STRIP; ++row) {
    for (float* of_row : {weights + row * KEYS, grad_scores + row * KEYS}) {
      std::fill(of_row, of_row + std::min(columns.begin, filled), 0.0f);
      if (columns.end < filled) std::fill(of_row + std::max<int64_t>(columns.end, 0), of_row + filled, 0.0f);
    }
  }
  if (columns.begin >= columns.end) return;

  const int64_t panel = PANEL * p.width;
  multiply({space.queries.data() + first_row * padded, padded, 1},
           {space.keys_transposed.data(), panel, PANEL}, columns.begin, columns.end, p.width,
           [&](int row, int64_t column, f8 score) __attribute__((always_inline)) {
             if (p.softcap != 0) score = p.softcap * hyperbolic_tangent(score / p.softcap);
             store8(weights + row * KEYS + column, score);
           });
  multiply({space.grads.data() + first_row * padded, padded, 1},
           {space.values_transposed.data(), panel, PANEL}, columns.begin, columns.end, p.width,
           [&](int row, int64_t column, f8 grad_weight) __attribute__((always_inline)) {
             const f8 score = load8(weights + row * KEYS + column);
             f8 weight = softmax_exponential(score - lse[row]);
             if (!columns.whole) {
               const Seen seen(block.position(first_row + row), tile.first, tile.keys, p.window);
               weight = where_seen(seen, column, weight, 0.0f);
             }
             f8 grad_score = weight * (grad_weight - deltas[row]);
             if (p.softcap != 0) {
               const f8 capped = score / p.softcap;
               grad_score *= 1.0f - capped * capped;
             }
             store8(weights + row * KEYS + column, weight);
             store8(grad_scores + row * KEYS + column, grad_score);
           });
}

// to[key] += sum over the block's rows of scores[row, key] rows[row], where a row that comes before a key, or
// after the window's end, is left out.
FASTRLHF_INLINE void add_over_rows(const AttentionProblem& p, const QueryBlock& block, const KeyTile& tile,
                                   const std::vector<float>& scores, const std::vector<float>& rows,
                                   int64_t padded, std::vector<float>& to) {
  for (int64_t key = 0; key < tile.keys; key += STRIP) {
    const int64_t position = tile.first + key;
    const int64_t begin = std::max<int64_t>(0, (position - block.first) * block.group);
    int64_t end = block.rows();
    if (p.window) end = std::min(end, (position + STRIP - 1 + p.window - block.first) * block.group);
    if (begin >= end) continue;
    float* sums = to.data() + key * padded;
    multiply({scores.data() + begin * KEYS + key, 1, KEYS}, {rows.data() + begin * padded, PANEL, padded}, 0,
             padded, end - begin, [&](int row, int64_t column, f8 sum) __attribute__((always_inline)) {
               float* at = sums + row * padded + column;
               store8(at, load8(at) + sum);
             });
  }
}

FASTRLHF_INLINE void block_against_tile(const AttentionProblem& p, const Gradients& gradients,
                                        const QueryBlock& block, const KeyTile& tile, int64_t padded,
                                        Workspace& space) {
  for (int64_t strip = 0; strip < block.strips(); ++strip) {
    const int64_t first_row = strip * STRIP;
    const StripColumns columns(Seen(block.position(first_row), tile.first, tile.keys, p.window),
                               Seen(block.position(first_row + STRIP - 1), tile.first, tile.keys, p.window));
    strip_scores(p, block, tile, columns, first_row, padded, space);
    multiply(
        {space.grad_scores.data() + first_row * KEYS + columns.begin, KEYS, 1},
        {space.keys.data() + columns.begin * PANEL, PANEL * KEYS, PANEL}, 0, padded,
        columns.end - columns.begin, [&](int row, int64_t column, f8 sum) __attribute__((always_inline)) {
          const int64_t at = first_row + row, left = p.width - column;
          if (at >= block.rows()) return;
          float* to = gradients.query + (block.position(at) * p.heads + block.head_of(at)) * p.width + column;
          store_columns(to, load_columns(to, left) + sum * p.scale, left);
        });
  }
  add_over_rows(p, block, tile, space.weights, space.grads, padded, space.grad_values);
  add_over_rows(p, block, tile, space.grad_scores, space.queries, padded, space.grad_keys);
}

FASTRLHF_INLINE void one_sequence(const AttentionProblem& p, const Gradients& gradients, const float* output,
                                  const float* lse, const Sequence& sequence, Workspace& space) {
  const int64_t group = p.heads / p.key_heads, padded = rounded_up(p.width, PANEL);
  const int64_t positions = positions_per_block(group, ROWS), head = sequence.key_head;
  for (int64_t first_key = sequence.begin; first_key < sequence.end; first_key += KEYS) {
    const KeyTile tile = {first_key, std::min<int64_t>(KEYS, sequence.end - first_key), head};
    pack_transposed(p.key, tile.first, tile.keys, head, p.width, space.keys_transposed.data());
    pack_transposed(p.value, tile.first, tile.keys, head, p.width, space.values_transposed.data());
    pack_panels(p.key, tile.first, tile.keys, head, p.width, space.keys.data());
    std::fill(space.grad_keys.begin(), space.grad_keys.end(), 0.0f);
    std::fill(space.grad_values.begin(), space.grad_values.end(), 0.0f);

    const int64_t last_key = tile.first + tile.keys - 1;
    const int64_t end = p.window ? std::min(sequence.end, last_key + p.window) : sequence.end;
    for (int64_t first = tile.first; first < end; first += positions) {
      const QueryBlock block = {first, std::min(positions, end - first), group, head * group};
      pack_block(p, gradients.output, output, lse, block, padded, space);
      block_against_tile(p, gradients, block, tile, padded, space);
    }
    for (int64_t key = 0; key < tile.keys; ++key) {
      const int64_t to = ((tile.first + key) * p.key_heads + head) * p.width;
      for (int64_t d = 0; d < p.width; d += LANES) {
        store_columns(gradients.key + to + d, load8(&space.grad_keys[key * padded + d]), p.width - d);
        store_columns(gradients.value + to + d, load8(&space.grad_values[key * padded + d]), p.width - d);
      }
    }
  }
}

typedef void OneSequence(const AttentionProblem&, const Gradients&, const float*, const float*,
                         const Sequence&, Workspace&);

void one_sequence_portable(const AttentionProblem& p, const Gradients& gradients, const float* output,
                           const float* lse, const Sequence& sequence, Workspace& space) {
  one_sequence(p, gradients, output, lse, sequence, space);
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void one_sequence_avx2(const AttentionProblem& p, const Gradients& gradients,
                                     const float* output, const float* lse, const Sequence& sequence,
                                     Workspace& space) {
  one_sequence(p, gradients, output, lse, sequence, space);
}
#endif

}  // namespace

void attention_backward(const AttentionProblem& problem, const HeadsIn& grad_output, const float* output,
                        const float* lse, float* grad_query, float* grad_key, float* grad_value) {
  OneSequence* run = one_sequence_portable;
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx2()) run = one_sequence_avx2;
#endif
  const Gradients gradients = {grad_output, grad_query, grad_key, grad_value};
  const std::vector<Sequence> items = sequences_of(problem);
  const int64_t count = (int64_t)items.size(), group = problem.heads / problem.key_heads;
  int64_t longest = 0;
  for (const Sequence& sequence : items) longest = std::max(longest, sequence.end - sequence.begin);
  const int64_t rows = rounded_up(std::min(longest, positions_per_block(group, ROWS)) * group, STRIP);
#pragma omp parallel if (count > 1)
  {
    Workspace space(rows, problem.width, rounded_up(problem.width, PANEL));
#pragma omp for schedule(static, 1)
    for (int64_t i = 0; i < count; ++i) run(problem, gradients, output, lse, items[i], space);
  }
}

}  // namespace fastrlhf
