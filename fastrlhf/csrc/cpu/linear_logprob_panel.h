// What `linear_logprob` does to one panel of logits, `[words][COLUMNS]`: a word a line, a row of hidden states a lane,
// so that no sum runs across lanes.
#pragma once

#include <algorithm>

#include "gemm.h"
#include "linear_logprob.h"
#include "vector_math.h"

namespace fastrlhf {

// Words in a tile of the vocabulary: the tile's two packed copies take half a megabyte of the second-level cache, and a
// panel of its logits 30 KB of the first. A multiple of every Tile's ROWS.
inline int64_t words_in_a_tile(int64_t width) {
  return std::min<int64_t>(240, std::max<int64_t>(48, (1 << 16) / std::max<int64_t>(1, width) / 12 * 12));
}

// The words [first, first + count) of the vocabulary.
struct Words {
  int64_t first, count;
};

// Where the logits of a panel lie that are held for all words.
template <class T>
FASTRLHF_INLINE float* held_panel(const LinearLogprobHead& head, float* held, int64_t panel) {
  return held + panel * T::COLUMNS * round_up(head.words, T::ROWS);
}

// z = logits after bias, softcap and temperature, in place.
template <class T>
FASTRLHF_INLINE void finish_logits(const LinearLogprobHead& head, Words words, float* z) {
  typedef typename T::Vector V;
  const float softcap = head.softcap, over_softcap = 1 / softcap;
  for (int64_t word = 0; word < words.count; ++word) {
    const float bias = head.bias ? head.bias[words.first + word] : 0.0f;
    for (int c = 0; c < T::VECTORS; ++c) {
      float* at = z + word * T::COLUMNS + c * T::LANES;
      V x = load_vector<V>(at) + bias;
      if (softcap > 0) x = softcap * hyperbolic_tangent<V>(x * over_softcap);
      store_vector(at, head.temperature == 1 ? x : x / head.temperature);
    }
  }
}

// d capped / d uncapped logit, of a finished logit.
template <class V>
FASTRLHF_INLINE V cap_slope(const LinearLogprobHead& head, V z) {
  if (head.softcap <= 0) return V{} + 1.0f;
  const V share = z * (head.temperature / head.softcap);
  return 1.0f - share * share;
}

// The softmax of a panel so far: sums over the words seen of e = exp(z - largest) and of e (z - largest - centre).
// `centre` is about the mean of z - largest under the distribution, from the first words seen, so that entropies and
// their gradients are not small differences of large sums.
template <class T>
struct PanelStatistics {
  float largest[T::COLUMNS], centre[T::COLUMNS], sum[T::COLUMNS], moment[T::COLUMNS];
};

template <class T>
FASTRLHF_INLINE void clear(PanelStatistics<T>& statistics) {
  for (int lane = 0; lane < T::COLUMNS; ++lane) {
    statistics.largest[lane] = -INFINITY;
    statistics.centre[lane] = statistics.sum[lane] = statistics.moment[lane] = 0;
  }
}

// When the largest logit rises by `rise`: what sums of e are multiplied with, and by how much z - largest falls.
template <class V>
struct Rescale {
  V factor, rise;
};

// Nothing has been summed up yet where `old` is -inf; the difference of two -inf would be NaN.
template <class V>
FASTRLHF_INLINE Rescale<V> rescale(V old, V now) {
  const V rise = old == -INFINITY ? V{} : now - old;
  return {exponential_flushed<V>(-rise), rise};
}

// moment = factor (moment - rise sum), sum = factor sum, a line of `sums` at a time; either may be null.
template <class T>
FASTRLHF_INLINE void rescale_lines(const Rescale<typename T::Vector>* by, float* sums, float* moments,
                                   int64_t lines) {
  typedef typename T::Vector V;
  for (int64_t line = 0; line < lines; ++line)
    for (int c = 0; c < T::VECTORS; ++c) {
      const int64_t at = line * T::COLUMNS + c * T::LANES;
      const V sum = load_vector<V>(sums + at);
      if (moments)
        store_vector(moments + at, by[c].factor * (load_vector<V>(moments + at) - by[c].rise * sum));
      store_vector(sums + at, by[c].factor * sum);
    }
}

// The mean of z - largest under the softmax of this panel alone, where a lane had seen no word before.
template <class V>
FASTRLHF_INLINE V first_centre(const float* z, int64_t stride, int64_t count, V largest) {
  V sum{}, moment{};
  for (int64_t word = 0; word < count; ++word) {
    const V below = load_vector<V>(z + word * stride) - largest;
    const V e = exponential_flushed<V>(below);
    sum += e;
    moment += e == 0.0f ? V{} : e * below;
  }
  return sum > 0.0f ? moment / sum : V{};
}

// Takes the logits of a tile of words into the statistics. On return `z` holds e times the slope of the softcap, `moments` (if
// not null) that times z - largest - centre; `sums` and `weighted_moments`, [width][COLUMNS], which hold such sums
// times weights over the words before (either may be null), are brought to the same scale.
template <class T>
FASTRLHF_INLINE void accumulate_panel(const LinearLogprobHead& head, int64_t count, float* z, float* moments,
                                      PanelStatistics<T>& statistics, float* sums, float* weighted_moments,
                                      int64_t width) {
  typedef typename T::Vector V;
  V largest[T::VECTORS], centre[T::VECTORS], sum[T::VECTORS], moment[T::VECTORS];
  Rescale<V> by[T::VECTORS];
  bool rises = false;
  for (int c = 0; c < T::VECTORS; ++c) {
    const V old = load_vector<V>(statistics.largest + c * T::LANES);
    V top = old;
    for (int64_t word = 0; word < count; ++word)
      top = larger<V>(load_vector<V>(z + word * T::COLUMNS + c * T::LANES), top);
    by[c] = rescale<V>(old, top);
    store_vector(statistics.largest + c * T::LANES, top);
    const IntsOf<V> moved = top != old, fresh = old == -INFINITY;
    bool any_fresh = false;
    for (int lane = 0; lane < T::LANES; ++lane) rises |= moved[lane] != 0, any_fresh |= fresh[lane] != 0;
    largest[c] = top == -INFINITY ? V{} : top;
    centre[c] = load_vector<V>(statistics.centre + c * T::LANES);
    if (any_fresh) {
      const V first = first_centre<V>(z + c * T::LANES, T::COLUMNS, count, largest[c]);
      centre[c] = fresh ? first : centre[c];
      store_vector(statistics.centre + c * T::LANES, centre[c]);
    }
    sum[c] = moment[c] = V{};
  }
  if (rises) {
    rescale_lines<T>(by, statistics.sum, statistics.moment, 1);
    if (sums) rescale_lines<T>(by, sums, weighted_moments, width);
  }
  for (int64_t word = 0; word < count; ++word)
#pragma GCC unroll 4
    for (int c = 0; c < T::VECTORS; ++c) {
      float* at = z + word * T::COLUMNS + c * T::LANES;
      const V logit = load_vector<V>(at), below = logit - largest[c];
      const V e = exponential_flushed<V>(below);
      const V from_centre = e == 0.0f ? V{} : below - centre[c];
      sum[c] += e;
      moment[c] += e * from_centre;
      if (!sums) continue;
      const V sloped = e == 0.0f ? V{} : e * cap_slope<V>(head, logit);
      store_vector(at, sloped);
      if (moments) store_vector(moments + word * T::COLUMNS + c * T::LANES, sloped * from_centre);
    }
  for (int c = 0; c < T::VECTORS; ++c) {
    const int at = c * T::LANES;
    store_vector(statistics.sum + at, load_vector<V>(statistics.sum + at) + sum[c]);
    store_vector(statistics.moment + at, load_vector<V>(statistics.moment + at) + moment[c]);
  }
}

// The gradients of a panel's outputs, of rows and what is known of their softmax from the forward.
template <class T>
struct PanelGradients {
  float grad_logprob[T::COLUMNS], grad_entropy[T::COLUMNS], entropy[T::COLUMNS];
  float logsumexp[T::COLUMNS], logsumexp_rest[T::COLUMNS];  // the float64 in two parts
};

// From finished logits to the gradients of the logits before the softcap, in place, the target's part aside.
template <class T>
FASTRLHF_INLINE void logit_gradients(const LinearLogprobHead& head, int64_t count, float* z,
                                     const PanelGradients<T>& of, bool with_entropy) {
  typedef typename T::Vector V;
  for (int64_t word = 0; word < count; ++word)
#pragma GCC unroll 4
    for (int c = 0; c < T::VECTORS; ++c) {
      const int lane = c * T::LANES;
      float* at = z + word * T::COLUMNS + lane;
      const V logit = load_vector<V>(at);
      const V log_p = logit - load_vector<V>(of.logsumexp + lane) - load_vector<V>(of.logsumexp_rest + lane);
      const V p = exponential_flushed<V>(log_p);
      V grad = load_vector<V>(of.grad_logprob + lane);
      if (with_entropy) {
        const V above = p == 0.0f ? V{} : log_p + load_vector<V>(of.entropy + lane);
        grad += load_vector<V>(of.grad_entropy + lane) * above;
      }
      store_vector(at, -p * grad * cap_slope<V>(head, logit) / head.temperature);
    }
}

}  // namespace fastrlhf
