// Attention of one new token a row over a paged cache. A part of a row, with one key-value head and the query
// heads that read it, is a unit of work; the parts of a row are merged at the end, in order, so that the bits
// depend on the lengths alone. Bound by reading the cache: each key and value is read once.
#include "decode_attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"
#include "softmax.h"

namespace fastrlhf {
namespace {

constexpr int64_t PART = 512;  // positions of a part
constexpr int TILE = 32;       // positions whose scores are held at a time
constexpr int KEYS = 4;        // keys whose scores are computed side by side
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

struct Part {
  int64_t row, key_head, begin, end;
  bool whole;  // all that the row has
};

struct Softmax {
  float maximum, sum;
};

// A head's scores of a tile become weights; returns what its output so far is multiplied with.
FASTRLHF_INLINE float weigh(float* scores, int count, Softmax& so_far) {
  std::fill(scores + count, scores + TILE, -INFINITE);
  f8 largest = f8{} - INFINITE;
  for (int c = 0; c < TILE; c += LANES) {
    const f8 x = load(scores + c, LANES);
    largest = x > largest ? x : largest;
  }
  float maximum = so_far.maximum;
  for (int lane = 0; lane < LANES; ++lane) maximum = std::max(maximum, largest[lane]);
  const float reference = maximum == -INFINITE ? 0.0f : maximum;
  f8 sum{};
  for (int c = 0; c < TILE; c += LANES) {
    const f8 weight = softmax_exponential(load(scores + c, LANES) - reference);
    store(scores + c, weight, LANES);
    sum += weight;
  }
  const float factor = softmax_exponential(f8{} + (so_far.maximum - reference))[0];
  so_far = {maximum, so_far.sum * factor + sum_of_lanes(sum)};
  return factor;
}

// scores[i] = scale times the product of `query` with keys[i], for `count` of them.
FASTRLHF_INLINE void score(const float* query, const float* const* keys, int count, int64_t width,
                           float scale, float* scores) {
  for (int first = 0; first < count; first += KEYS) {
    const float* some[KEYS];
    for (int i = 0; i < KEYS; ++i) some[i] = keys[first + i < count ? first + i : first];
    f8 sums[KEYS] = {}, others[KEYS] = {};
    int64_t d = 0;
    for (; d + 2 * LANES <= width; d += 2 * LANES) {
      const f8 q = load(query + d, LANES), other = load(query + d + LANES, LANES);
#pragma GCC unroll 4
      for (int i = 0; i < KEYS; ++i) {
        sums[i] += q * load(some[i] + d, LANES);
        others[i] += other * load(some[i] + d + LANES, LANES);
      }
    }
    for (; d + LANES <= width; d += LANES) {
      for (int i = 0; i < KEYS; ++i) sums[i] += load(query + d, LANES) * load(some[i] + d, LANES);
    }
    if (const int rest = (int)(width - d)) {
      for (int i = 0; i < KEYS; ++i) others[i] += load(query + d, rest) * load(some[i] + d, rest);
    }
    for (int i = 0; i < KEYS; ++i) sums[i] += others[i];
    const f4 products = scale * sums_of_lanes(sums);
    memcpy(scores + first, &products, sizeof products);
  }
}

// to = factor to + sum over the tile of weights[i] rows[i], from column d on, so many VECTORS at a time. Returns the
// column where it ends.
template <int VECTORS>
FASTRLHF_INLINE int64_t add_weighted_columns(float* to, float factor, const float* weights,
                                             const float* const* rows, int count, int64_t d, int64_t width) {
  for (; d + VECTORS * LANES <= width; d += VECTORS * LANES) {
    f8 sums[VECTORS];
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) sums[i] = load(to + d + i * LANES, LANES) * factor;
    for (int key = 0; key < count; ++key) {
#pragma GCC unroll 8
      for (int i = 0; i < VECTORS; ++i) sums[i] += load(rows[key] + d + i * LANES, LANES) * weights[key];
    }
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) store(to + d + i * LANES, sums[i], LANES);
  }
  return d;
}

FASTRLHF_INLINE void add_weighted(float* to, float factor, const float* weights, const float* const* rows,
                                  int count, int64_t width) {
  int64_t d = add_weighted_columns<8>(to, factor, weights, rows, count, 0, width);
  d = add_weighted_columns<4>(to, factor, weights, rows, count, d, width);
  d = add_weighted_columns<1>(to, factor, weights, rows, count, d, width);
  if (const int rest = (int)(width - d)) {
    f8 sum = load(to + d, rest) * factor;
    for (int key = 0; key < count; ++key) sum += load(rows[key] + d, rest) * weights[key];
    store(to + d, sum, rest);
  }
}

// Where the keys and values of `count` positions from `first` on lie; false if a block is out of range.
FASTRLHF_INLINE bool find(const DecodeProblem<float>& p, const Part& part, int64_t first, int count,
                          const float** keys, const float** values) {
  for (int i = 0; i < count;) {
    const int64_t block = p.block_table[part.row * p.max_blocks + (first + i) / p.block_size];
    if (block < 0 || block >= p.blocks) return false;
    int64_t slot = (first + i) % p.block_size;
    const auto place = [&](const Cache<float>& cache) {
      return cache.data + block * cache.block_stride + slot * cache.slot_stride +
             part.key_head * cache.head_stride;
    };
    for (const float *key = place(p.key), *value = place(p.value); slot < p.block_size && i < count;
         ++slot, ++i) {
      keys[i] = key;
      values[i] = value;
      key += p.key.slot_stride;
      value += p.value.slot_stride;
    }
  }
  return true;
}

// outputs: [group, width], not yet divided by the sums; softmax: [group].
FASTRLHF_INLINE void attend(const DecodeProblem<float>& p, const Part& part, float* outputs,
                            Softmax* softmax) {
  const int64_t group = p.heads / p.key_heads;
  const float* query = p.query + (part.row * p.heads + part.key_head * group) * p.width;
  std::fill(outputs, outputs + group * p.width, 0.0f);
  std::fill(softmax, softmax + group, Softmax{-INFINITE, 0.0f});

  const float *keys[TILE], *values[TILE];
  for (int64_t first = part.begin; first < part.end; first += TILE) {
    const int count = (int)std::min<int64_t>(TILE, part.end - first);
    if (!find(p, part, first, count, keys, values)) {
      std::fill(softmax, softmax + group, Softmax{0.0f, NOT_A_NUMBER});
      return;
    }
    for (int64_t head = 0; head < group; ++head) {
      float scores[TILE];
      score(query + head * p.width, keys, count, p.width, p.scale, scores);
      if (p.softcap != 0) {
        std::fill(scores + count, scores + TILE, 0.0f);
        for (int c = 0; c < TILE; c += LANES)
          store(scores + c, p.softcap * hyperbolic_tangent(load(scores + c, LANES) / p.softcap), LANES);
      }
      const float factor = weigh(scores, count, softmax[head]);
      add_weighted(outputs + head * p.width, factor, scores, values, count, p.width);
    }
  }
}

typedef void Attend(const DecodeProblem<float>&, const Part&, float*, Softmax*);

void attend_portable(const DecodeProblem<float>& p, const Part& part, float* outputs, Softmax* softmax) {
  attend(p, part, outputs, softmax);
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void attend_avx2(const DecodeProblem<float>& p, const Part& part, float* outputs,
                               Softmax* softmax) {
  attend(p, part, outputs, softmax);
}
#endif

// Kept from call to call: the steps of a decoding thread allocate nothing.
struct Scratch {
  std::vector<Part> parts;
  std::vector<float> outputs;
  std::vector<Softmax> softmax;
};

// Every part of every row that has positions to see; rows that have none, or are wrong, are filled.
void find_parts(const DecodeProblem<float>& p, float* output, std::vector<Part>& parts) {
  parts.clear();
  for (int64_t row = 0; row < p.rows; ++row) {
    const int64_t length = p.lengths[row];
    if (length <= 0 || length > p.max_blocks * p.block_size) {
      float* of_row = output + row * p.heads * p.width;
      std::fill(of_row, of_row + p.heads * p.width, length == 0 ? 0.0f : NOT_A_NUMBER);
      continue;
    }
    const int64_t begin = p.window ? std::max<int64_t>(0, length - p.window) : 0;
    for (int64_t head = 0; head < p.key_heads; ++head) {
      for (int64_t first = begin; first < length; first += PART)
        parts.push_back({row, head, first, std::min(first + PART, length), length - begin <= PART});
    }
  }
}

// The parts [begin, end) are those of one row and key-value head.
void merge(const DecodeProblem<float>& p, const std::vector<Part>& parts, int64_t begin, int64_t end,
           const float* outputs, const Softmax* softmax, float* output) {
  const int64_t group = p.heads / p.key_heads;
  for (int64_t head = 0; head < group; ++head) {
    float maximum = -INFINITE, sum = 0;
    for (int64_t i = begin; i < end; ++i) maximum = std::max(maximum, softmax[i * group + head].maximum);
    float* to = output + (parts[begin].row * p.heads + parts[begin].key_head * group + head) * p.width;
    std::fill(to, to + p.width, 0.0f);
    for (int64_t i = begin; i < end; ++i) {
      const Softmax& of_part = softmax[i * group + head];
      const float factor = std::exp(of_part.maximum - maximum);
      const float* from = outputs + (i * group + head) * p.width;
      sum += factor * of_part.sum;
      for (int64_t d = 0; d < p.width; ++d) to[d] += factor * from[d];
    }
    for (int64_t d = 0; d < p.width; ++d) to[d] /= sum;
  }
}

}  // namespace

void decode_attention(const DecodeProblem<float>& p, float* output) {
  Attend* run = attend_portable;
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx2()) run = attend_avx2;
#endif
  static thread_local Scratch of_thread;
  Scratch& scratch = of_thread;  // the caller's, also on the other threads
  find_parts(p, output, scratch.parts);
  const std::vector<Part>& parts = scratch.parts;
  const int64_t count = (int64_t)parts.size(), group = p.heads / p.key_heads;
  if ((int64_t)scratch.outputs.size() < count * group * p.width)
    scratch.outputs.resize(count * group * p.width);
  if ((int64_t)scratch.softmax.size() < count * group) scratch.softmax.resize(count * group);
  float* outputs = scratch.outputs.data();
  Softmax* softmax = scratch.softmax.data();
#pragma omp parallel for schedule(static) if (count > 1)
  for (int64_t i = 0; i < count; ++i) {
    run(p, parts[i], outputs + i * group * p.width, softmax + i * group);
    if (parts[i].whole) merge(p, parts, i, i + 1, outputs, softmax, output);
  }

  for (int64_t begin = 0, end; begin < count; begin = end) {
    for (end = begin + 1;
         end < count && parts[end].row == parts[begin].row && parts[end].key_head == parts[begin].key_head;)
      ++end;
    if (!parts[begin].whole) merge(p, parts, begin, end, outputs, softmax, output);
  }
}

}  // namespace fastrlhf
