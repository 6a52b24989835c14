// Attention of one new token a row over a paged cache. A block has a part of a row, one key-value head and up
// to eight of the query heads that read it. A few lanes share a key, 16 bytes each, so that a warp reads
// several keys at a time; every such team of lanes has an online softmax of its own, and the teams are merged
// through shared memory. A second kernel merges the parts of rows that are split.
#pragma once

#include "number.cuh"
#include "reduce.cuh"

#include "../decode_problem.h"

// An array whose index is not known when compiling lies in memory, not in registers.
#ifdef __CUDACC__
#define FASTRLHF_UNROLL _Pragma("unroll")
#else
#define FASTRLHF_UNROLL
#endif

namespace fastrlhf {

constexpr int DECODE_THREADS = 128;

// 16 bytes of a row of the cache: one load.
template <class T>
struct alignas(16) Pack {
  static constexpr int COUNT = 16 / sizeof(T);
  T x[COUNT];
};

// LANES lanes share a key, each with VECTORS packs of it, for GROUP query heads.
template <int LANES_, int VECTORS_, int GROUP_>
struct DecodeShape {
  static constexpr int LANES = LANES_, VECTORS = VECTORS_, GROUP = GROUP_;
  static constexpr int TEAMS = DECODE_THREADS / LANES;
  static constexpr int UNROLL = 4 / VECTORS;  // keys that a team has in flight
};

// Where the parts of rows that are split go: [rows, heads, splits], the maximum of a part's scores, the sum of
// its weights, and its output, not divided by the sum.
struct DecodeParts {
  float* sums;     // [..., 2]
  float* outputs;  // [..., width]
};

template <class Shape, class T>
inline int64_t decode_chunks(const DecodeProblem<T>& p) {
  return (p.heads / p.key_heads + Shape::GROUP - 1) / Shape::GROUP;
}

template <class Shape, class T>
inline unsigned decode_blocks(const DecodeProblem<T>& p, int64_t splits) {
  return (unsigned)(p.rows * p.key_heads * decode_chunks<Shape>(p) * splits);
}

__device__ __forceinline__ float finite_reference(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from, bool there) {
  Pack<T> pack = {};
  if (there) pack = *(const Pack<T>*)from;
  return pack;
}

// A team's share of the softmax of GROUP heads: of the columns, what its lane has of them.
template <class T, class Shape>
struct TeamSoftmax {
  static constexpr int COLUMNS = Shape::VECTORS * Pack<T>::COUNT;
  float maximum[Shape::GROUP], sum[Shape::GROUP], output[Shape::GROUP][COLUMNS];

  __device__ __forceinline__ TeamSoftmax() {
    FASTRLHF_UNROLL
    for (int head = 0; head < Shape::GROUP; ++head) {
      maximum[head] = -INFINITY;
      sum[head] = 0;
      FASTRLHF_UNROLL
      for (int i = 0; i < COLUMNS; ++i) output[head][i] = 0;
    }
  }

  __device__ __forceinline__ void add(int head, const float (&scores)[Shape::UNROLL],
                                      const Pack<T> (&values)[Shape::UNROLL][Shape::VECTORS]) {
    float larger = maximum[head];
    FASTRLHF_UNROLL
    for (int u = 0; u < Shape::UNROLL; ++u) larger = fmaxf(larger, scores[u]);
    const float reference = finite_reference(larger), factor = expf(maximum[head] - reference);
    float weights[Shape::UNROLL];
    sum[head] *= factor;
    FASTRLHF_UNROLL
    for (int u = 0; u < Shape::UNROLL; ++u) {
      weights[u] = expf(scores[u] - reference);
      sum[head] += weights[u];
    }
    maximum[head] = larger;
    FASTRLHF_UNROLL
    for (int i = 0; i < COLUMNS; ++i) {
      float total = output[head][i] * factor;
      FASTRLHF_UNROLL
      for (int u = 0; u < Shape::UNROLL; ++u)
        total += weights[u] * to_float(values[u][i / Pack<T>::COUNT].x[i % Pack<T>::COUNT]);
      output[head][i] = total;
    }
  }
};

// Grid: decode_blocks(p, splits) blocks of DECODE_THREADS. parts is not looked at where splits is one.
template <class T, class Shape>
__global__ void __launch_bounds__(DECODE_THREADS)
    decode_attention_kernel(DecodeProblem<T> p, int64_t splits, T* __restrict__ output, DecodeParts parts) {
  constexpr int COUNT = Pack<T>::COUNT, LANES = Shape::LANES, VECTORS = Shape::VECTORS, GROUP = Shape::GROUP;
  constexpr int TEAMS = Shape::TEAMS, UNROLL = Shape::UNROLL, COLUMNS = VECTORS * COUNT;
  const int lane = threadIdx.x % LANES, team = threadIdx.x / LANES;
  const int64_t group = p.heads / p.key_heads, chunks = (group + GROUP - 1) / GROUP;
  int64_t rest = blockIdx.x;
  const int64_t split = rest % splits;
  rest /= splits;
  const int64_t first_member = rest % chunks * GROUP;
  rest /= chunks;
  const int64_t key_head = rest % p.key_heads, row = rest / p.key_heads;
  const int64_t first_head = key_head * group + first_member;
  const int members = (int)(group - first_member < GROUP ? group - first_member : GROUP);

  int length = p.lengths[row];
  const bool wrong = length < 0 || length > p.max_blocks * p.block_size;
  if (wrong) length = 0;
  const int low = p.window && p.window < length ? length - (int)p.window : 0;
  const int positions = (int)((length - low + splits - 1) / splits);
  const int begin = low + (int)split * positions;
  const int end = begin + positions < length ? begin + positions : length;

  float query[GROUP][COLUMNS];
  FASTRLHF_UNROLL
  for (int head = 0; head < GROUP; ++head) {
    FASTRLHF_UNROLL
    for (int v = 0; v < VECTORS; ++v) {
      const int column = (v * LANES + lane) * COUNT;
      const bool there = head < members && column < p.width;
      const Pack<T> pack = load_pack(p.query + (row * p.heads + first_head + head) * p.width + column, there);
      FASTRLHF_UNROLL
      for (int i = 0; i < COUNT; ++i) query[head][v * COUNT + i] = p.scale * to_float(pack.x[i]);
    }
  }

  const T* keys_of_head = p.key.data + key_head * p.key.head_stride;
  const T* values_of_head = p.value.data + key_head * p.value.head_stride;
  const int32_t* table = p.block_table + row * p.max_blocks;
  const unsigned block_size = (unsigned)p.block_size;
  TeamSoftmax<T, Shape> softmax;
  // the whole warp goes round together: its lanes exchange what they have of a score
  for (int base = begin; base < end; base += TEAMS * UNROLL) {
    Pack<T> keys[UNROLL][VECTORS], values[UNROLL][VECTORS];
    float penalty
        [UNROLL];  // added to the score: minus infinity past the end, NaN for an entry that is no block
    FASTRLHF_UNROLL
    for (int u = 0; u < UNROLL; ++u) {
      const unsigned position = base + u * TEAMS + team;
      const bool inside = position < (unsigned)end;
      const int block = inside ? table[position / block_size] : 0;
      const bool there = inside && block >= 0 && block < p.blocks;
      penalty[u] = there ? 0.0f : inside ? NAN : -INFINITY;
      const int64_t slot = position % block_size;
      const T* key = keys_of_head + block * p.key.block_stride + slot * p.key.slot_stride;
      const T* value = values_of_head + block * p.value.block_stride + slot * p.value.slot_stride;
      FASTRLHF_UNROLL
      for (int v = 0; v < VECTORS; ++v) {
        const int column = (v * LANES + lane) * COUNT;
        keys[u][v] = load_pack(key + column, there && column < p.width);
        values[u][v] = load_pack(value + column, there && column < p.width);
      }
    }
    FASTRLHF_UNROLL
    for (int head = 0; head < GROUP; ++head) {
      float scores[UNROLL];
      FASTRLHF_UNROLL
      for (int u = 0; u < UNROLL; ++u) {
        float score = 0;
        FASTRLHF_UNROLL
        for (int i = 0; i < COLUMNS; ++i) score += query[head][i] * to_float(keys[u][i / COUNT].x[i % COUNT]);
        FASTRLHF_UNROLL
        for (int distance = LANES / 2; distance > 0; distance /= 2)
          score += __shfl_xor_sync(FULL_WARP, score, distance);
        if (p.softcap != 0) score = p.softcap * tanhf(score / p.softcap);
        scores[u] = score + penalty[u];
      }
      softmax.add(head, scores, values);
    }
  }

  __shared__ float maxima[TEAMS][GROUP], sums[TEAMS][GROUP], outputs[TEAMS][GROUP][LANES * COLUMNS];
  FASTRLHF_UNROLL
  for (int head = 0; head < GROUP; ++head) {
    if (lane == 0) {
      maxima[team][head] = softmax.maximum[head];
      sums[team][head] = wrong ? NAN : softmax.sum[head];
    }
    FASTRLHF_UNROLL
    for (int i = 0; i < COLUMNS; ++i)
      outputs[team][head][(i / COUNT * LANES + lane) * COUNT + i % COUNT] = softmax.output[head][i];
  }
  __syncthreads();
  for (int at = threadIdx.x; at < members * p.width; at += DECODE_THREADS) {
    const int head = at / (int)p.width, column = at % (int)p.width;
    float maximum = -INFINITY, sum = 0, total = 0;
    for (int t = 0; t < TEAMS; ++t) maximum = fmaxf(maximum, maxima[t][head]);
    for (int t = 0; t < TEAMS; ++t) {
      const float factor = expf(maxima[t][head] - finite_reference(maximum));
      sum += factor * sums[t][head];
      total += factor * outputs[t][head][column];
    }
    const int64_t of_head = row * p.heads + first_head + head;
    if (splits == 1) {
      output[of_head * p.width + column] = from_float<T>(total / (sum == 0 ? 1.0f : sum));
    } else {
      const int64_t part = of_head * splits + split;
      parts.outputs[part * p.width + column] = total;
      if (column == 0) {
        parts.sums[2 * part] = maximum;
        parts.sums[2 * part + 1] = sum;
      }
    }
  }
}

// Grid: rows times heads blocks of DECODE_THREADS.
template <class T>
__global__ void __launch_bounds__(DECODE_THREADS)
    decode_attention_merge(DecodeParts parts, int64_t splits, int64_t width, T* __restrict__ output) {
  const int64_t row_and_head = blockIdx.x, first = row_and_head * splits;
  float maximum = -INFINITY, sum = 0;
  for (int64_t part = first; part < first + splits; ++part) maximum = fmaxf(maximum, parts.sums[2 * part]);
  const float reference = finite_reference(maximum);
  for (int64_t part = first; part < first + splits; ++part)
    sum += expf(parts.sums[2 * part] - reference) * parts.sums[2 * part + 1];
  for (int64_t column = threadIdx.x; column < width; column += DECODE_THREADS) {
    float total = 0;
    for (int64_t part = first; part < first + splits; ++part)
      total += expf(parts.sums[2 * part] - reference) * parts.outputs[part * width + column];
    output[row_and_head * width + column] = from_float<T>(total / (sum == 0 ? 1.0f : sum));
  }
}

// run(shape) with the fewest lanes that hold a row of `packs` packs, for at least the heads of a group, or eight.
template <int LANES, int VECTORS, class Run>
int with_decode_group(int64_t group, Run run) {
  if (group == 1) return run(DecodeShape<LANES, VECTORS, 1>{});
  if (group <= 4) return run(DecodeShape<LANES, VECTORS, 4>{});
  return run(DecodeShape<LANES, VECTORS, 8>{});
}

template <class T, class Run>
int with_decode_shape(const DecodeProblem<T>& p, Run run) {
  const int64_t packs = p.width / Pack<T>::COUNT, group = p.heads / p.key_heads;
  if (packs <= 8) return with_decode_group<8, 1>(group, run);
  if (packs <= 16) return with_decode_group<16, 1>(group, run);
  if constexpr (sizeof(T) == 4) {
    if (packs > 32) return with_decode_group<32, 2>(group, run);
  }
  return with_decode_group<32, 1>(group, run);
}

}  // namespace fastrlhf
