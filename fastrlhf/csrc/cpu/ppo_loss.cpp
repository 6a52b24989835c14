// The PPO objective, its statistics and its gradients in one pass over the tokens, eight at a time.
#include <array>
#include <vector>

#include "kernels.h"

namespace fastrlhf {
namespace {

// The unit of work and of summation, whatever the number of threads: so the sums have the same bits for all
// of them.
constexpr int64_t CHUNK = 2048;

typedef std::array<double, SUMS> Sums;

// Sums of a chunk: float64 for what is added up, integers (minus one a hit) for what is counted.
struct LaneSums {
  LaneSum policy_loss, value_loss, entropy, kl, approx_kl, ratio, objective;
  i8 clipped{}, value_clipped{}, tokens{}, value_tokens{};
};

FASTRLHF_INLINE void eight_tokens(const PPOLossArrays<float>& a, const PPOLossOptions& options,
                                  const PPOLossFactors& factors, int64_t at, int count, LaneSums& sums) {
  const f8 zero{};
  const i8 keep = load_mask(a.mask + at, count), keep_value = load_mask(a.value_mask + at, count);
  const f8 logprob = load(a.logprobs + at, count);
  const f8 weight = a.weights ? load(a.weights + at, count) : zero + 1.0f;
  const f8 token_weight = a.token_weights ? load(a.token_weights + at, count) : zero + 1.0f;
  const f8 share = token_weight * factors.per_token;

  const PolicyTerms<f8> policy = policy_terms(logprob, load(a.old_logprobs + at, count),
                                              load(a.advantages + at, count), weight, options);
  f8 objective = policy.loss, slope = policy.slope;
  sums.policy_loss.add(keep ? policy.loss : zero);
  sums.approx_kl.add(keep ? policy.approx_kl : zero);
  sums.ratio.add(keep ? policy.ratio : zero);
  sums.clipped += keep & policy.clipped;
  sums.tokens += keep;
  sums.value_tokens += keep_value;

  if (a.entropy) {
    const f8 entropy = load(a.entropy + at, count);
    if (factors.entropy_coef != 0) objective -= factors.entropy_coef * entropy;
    sums.entropy.add(keep ? entropy : zero);
    store(a.grad_entropy + at, keep ? -factors.entropy_coef * share : zero, count);
  }
  if (a.ref_logprobs) {
    const KLTerms<f8> kl = kl_terms(logprob, load(a.ref_logprobs + at, count), options.kl_estimator);
    if (factors.kl_coef != 0) {
      objective += factors.kl_coef * kl.kl;
      slope += factors.kl_coef * kl.slope;
    }
    sums.kl.add(keep ? kl.kl : zero);
  }
  sums.objective.add(keep ? token_weight * objective : zero);
  store(a.grad_logprobs + at, keep ? share * slope : zero, count);

  if (a.values) {
    const ValueTerms<f8> value = value_terms(load(a.values + at, count), load(a.old_values + at, count),
                                             load(a.returns + at, count), options);
    sums.value_loss.add(keep_value ? value.loss : zero);
    sums.value_clipped += keep_value & value.clipped;
    store(a.grad_values + at, keep_value ? factors.per_value * value.slope : zero, count);
  }
}

FASTRLHF_INLINE double hits(i8 counted) {
  int64_t sum = 0;
  for (int lane = 0; lane < LANES; ++lane) sum -= counted[lane];
  return (double)sum;
}

FASTRLHF_INLINE void chunk(const PPOLossArrays<float>& arrays, const PPOLossOptions& given, int64_t begin,
                           int64_t end, Sums& out) {
  // Copies of our own: a store might change what lies behind a reference, which would be read again each time.
  const PPOLossArrays<float> a = arrays;
  const PPOLossOptions options = given;
  const PPOLossFactors factors = ppo_loss_factors(a.denominators, options);
  LaneSums sums;
  int64_t at = begin;
  for (; at + LANES <= end; at += LANES) eight_tokens(a, options, factors, at, LANES, sums);
  if (at < end) eight_tokens(a, options, factors, at, (int)(end - at), sums);

  out[POLICY_LOSS] = sums.policy_loss.total();
  out[VALUE_LOSS] = sums.value_loss.total();
  out[ENTROPY] = sums.entropy.total();
  out[KL] = sums.kl.total();
  out[APPROX_KL] = sums.approx_kl.total();
  out[RATIO] = sums.ratio.total();
  out[CLIPPED] = hits(sums.clipped);
  out[VALUE_CLIPPED] = hits(sums.value_clipped);
  out[TOKENS] = hits(sums.tokens);
  out[VALUE_TOKENS] = hits(sums.value_tokens);
  out[OBJECTIVE] = sums.objective.total();
}

typedef void Chunk(const PPOLossArrays<float>&, const PPOLossOptions&, int64_t, int64_t, Sums&);

void chunk_portable(const PPOLossArrays<float>& a, const PPOLossOptions& o, int64_t begin, int64_t end,
                    Sums& out) {
  chunk(a, o, begin, end, out);
}

#ifdef FASTRLHF_HAS_AVX2_VERSION
FASTRLHF_AVX2 void chunk_avx2(const PPOLossArrays<float>& a, const PPOLossOptions& o, int64_t begin,
                              int64_t end, Sums& out) {
  chunk(a, o, begin, end, out);
}
#endif

}  // namespace

void ppo_loss(const PPOLossArrays<float>& arrays, int64_t tokens, const PPOLossOptions& options) {
  Chunk* run = chunk_portable;
#ifdef FASTRLHF_HAS_AVX2_VERSION
  if (use_avx2()) run = chunk_avx2;
#endif
  const int64_t chunks = (tokens + CHUNK - 1) / CHUNK;
  std::vector<Sums> of_chunk(chunks);
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = i * CHUNK, end = begin + CHUNK < tokens ? begin + CHUNK : tokens;
    run(arrays, options, begin, end, of_chunk[i]);
  }
  Sums total{};
  for (const Sums& sums : of_chunk) {
    for (int i = 0; i < SUMS; ++i) total[i] += sums[i];
  }
  for (int stat = 0; stat < STATS; ++stat) arrays.stats[stat] = total[stat];
  *arrays.loss = ppo_loss_from_sums(total.data(), arrays.denominators[0], arrays.denominators[1], options);
}

}  // namespace fastrlhf
