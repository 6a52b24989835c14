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
constexpr int STEP = 4;        // vectors of outputs held in registers
constexpr float INFINITE = std::numeric_limits<float>::infinity();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

struct Part {
  int64_t row, key_head, begin, end;
};

struct Softmax {
  float maximum, sum;
};

// A head's scores of a tile become weights; returns what its output so far is multiplied with.
FASTRLHF_INLINE float weigh(float* scores, int count, Softmax& so_far) {
  std::fill(scores + count, scores + TILE, -INFINITE);
  const float maximum = std::max(so_far.maximum, *std::max_element(scores, scores + count));
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

FASTRLHF_INLINE float dot(const float* a, const float* b, int64_t width) {
  f8 sums[2] = {};
  int64_t d = 0;
  for (; d + 2 * LANES <= width; d += 2 * LANES) {
    sums[0] += load(a + d, LANES) * load(b + d, LANES);
    sums[1] += load(a + d + LANES, LANES) * load(b + d + LANES, LANES);
  }
  for (; d + LANES <= width; d += LANES) sums[0] += load(a + d, LANES) * load(b + d, LANES);
  if (d < width) sums[1] += load(a + d, (int)(width - d)) * load(b + d, (int)(width - d));
  return sum_of_lanes(sums[0] + sums[1]);
}

// to = factor to + sum over the tile of weights[i] rows[i].
FASTRLHF_INLINE void add_weighted(float* to, float factor, const float* weights, const float* const* rows,
                                  int count, int64_t width) {
  int64_t d = 0;
  for (; d + STEP * LANES <= width; d += STEP * LANES) {
    f8 sums[STEP];
#pragma GCC unroll 4
    for (int i = 0; i < STEP; ++i) sums[i] = load(to + d + i * LANES, LANES) * factor;
    for (int key = 0; key < count; ++key) {
#pragma GCC unroll 4
      for (int i = 0; i < STEP; ++i) sums[i] += load(rows[key] + d + i * LANES, LANES) * weights[key];
    }
#pragma GCC unroll 4
    for (int i = 0; i < STEP; ++i) store(to + d + i * LANES, sums[i], LANES);
  }
  for (; d < width; d += LANES) {
    const int some = (int)std::min<int64_t>(LANES, width - d);
    f8 sum = load(to + d, some) * factor;
    for (int key = 0; key < count; ++key) sum += load(rows[key] + d, some) * weights[key];
    store(to + d, sum, some);
  }
}

// outputs: [group, width], not yet divided by the sums; softmax: [group].
FASTRLHF_INLINE void attend(const DecodeProblem<float>& p, const Part& part, float* outputs, Softmax* softmax) {
  const int64_t group = p.heads / p.key_heads;
  const float* query = p.query + (part.row * p.heads + part.key_head * group) * p.width;
  std::fill(outputs, outputs + group * p.width, 0.0f);
  std::fill(softmax, softmax + group, Softmax{-INFINITE, 0.0f});

  const float *keys[TILE], *values[TILE];
  for (int64_t first = part.begin; first < part.end; first += TILE) {
    const int count = (int)std::min<int64_t>(TILE, part.end - first);
    for (int i = 0; i < count; ++i) {
      const int64_t block = p.block_table[part.row * p.max_blocks + (first + i) / p.block_size];
      if (block < 0 || block >= p.blocks) {
        std::fill(softmax, softmax + group, Softmax{0.0f, NOT_A_NUMBER});
        return;
      }
      const int64_t slot = (first + i) % p.block_size;
      const auto place = [&](const Cache<float>& cache) {
        return cache.data + block * cache.block_stride + slot * cache.slot_stride +
               part.key_head * cache.head_stride;
      };
      keys[i] = place(p.key);
      values[i] = place(p.value);
    }
    for (int64_t head = 0; head < group; ++head) {
      float scores[TILE];
      for (int i = 0; i < count; ++i) scores[i] = p.scale * dot(query + head * p.width, keys[i], p.width);
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
FASTRLHF_AVX2 void attend_avx2(const DecodeProblem<float>& p, const Part& part, float* outputs, Softmax* softmax) {
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
        parts.push_back({row, head, first, std::min(first + PART, length)});
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
  if ((int64_t)scratch.outputs.size() < count * group * p.width) scratch.outputs.resize(count * group * p.width);
  if ((int64_t)scratch.softmax.size() < count * group) scratch.softmax.resize(count * group);
  float* outputs = scratch.outputs.data();
  Softmax* softmax = scratch.softmax.data();
#pragma omp parallel for schedule(static) if (count > 1)
  for (int64_t i = 0; i < count; ++i) run(p, parts[i], outputs + i * group * p.width, softmax + i * group);

  for (int64_t begin = 0, end; begin < count; begin = end) {
    for (end = begin + 1; end < count && parts[end].row == parts[begin].row &&
                          parts[end].key_head == parts[begin].key_head;)
      ++end;
    merge(p, parts, begin, end, outputs, softmax, output);
  }
}

}  // namespace fastrlhf
