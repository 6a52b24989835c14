// Kernels that are wrong on purpose, and neighbours that are right: they show that the instrument sees the
// difference.
#pragma once

__global__ void without_barrier(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = (int)threadIdx.x;
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

__global__ void with_barrier(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = (int)threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared[63 - threadIdx.x];
  __syncthreads();
  shared[63 - threadIdx.x] = -1;
}

__global__ void reused_too_early(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = (int)threadIdx.x;
  __syncthreads();
  out[threadIdx.x] = shared[63 - threadIdx.x];
  shared[threadIdx.x] = -1;
}

__global__ void two_writers(int* out) {
  __shared__ int shared[1];
  shared[0] = 1;
  __syncthreads();
  out[threadIdx.x] = shared[0];
}

// A shuffle makes the lanes meet, but it is no barrier for memory.
__global__ void shuffle_for_a_barrier(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = (int)threadIdx.x;
  __shfl_sync(0xffffffffu, 0, 0);
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void warp_barrier(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = (int)threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

__global__ void warp_barrier_across_warps(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = (int)threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 32];
}

__global__ void half_a_warp_barrier(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = (int)threadIdx.x;
  __syncwarp(threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u);
  out[threadIdx.x] = shared[threadIdx.x ^ 16];
}

__global__ void neighbouring_bytes(int* out) {
  __shared__ char shared[64];
  shared[threadIdx.x] = (char)threadIdx.x;
  out[threadIdx.x] = shared[threadIdx.x];
}

// `block_sums` says that a second call needs a barrier before it.
__global__ void sums_twice(int* out) {
  double sums[1] = {1.0};
  fastrlhf::block_sums<1, 64>(sums);
  if (threadIdx.x > 0) sums[0] = 1.0;
  fastrlhf::block_sums<1, 64>(sums);
  out[threadIdx.x] = (int)sums[0];
}

__global__ void barrier_in_a_branch(int*) {
  if (threadIdx.x < 32) __syncthreads();
}

__global__ void lane_outside_its_mask(int* out) {
  out[threadIdx.x] = __shfl_sync(0xffffu, (int)threadIdx.x, 0);
}

__global__ void reads_unwritten_memory(int* out) {
  __shared__ float shared[64];
  if (threadIdx.x % 2) shared[threadIdx.x] = 1.0f;
  __syncthreads();
  ((float*)out)[threadIdx.x] = shared[threadIdx.x];
}

// `out` holds one number for each thread.
__global__ void writes_past_the_end(int* out) { out[threadIdx.x + 1] = (int)threadIdx.x; }

__global__ void writes_past_the_end_of_shared_memory(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x + 1] = out[threadIdx.x];
  out[threadIdx.x] = shared[threadIdx.x];
}

inline void run_faulty(const std::string& name, int* out, bool reversed) {
  static const std::map<std::string, void (*)(int*)> kernels = {
      {"without_barrier", without_barrier},
      {"with_barrier", with_barrier},
      {"reused_too_early", reused_too_early},
      {"two_writers", two_writers},
      {"shuffle_for_a_barrier", shuffle_for_a_barrier},
      {"warp_barrier", warp_barrier},
      {"warp_barrier_across_warps", warp_barrier_across_warps},
      {"half_a_warp_barrier", half_a_warp_barrier},
      {"neighbouring_bytes", neighbouring_bytes},
      {"sums_twice", sums_twice},
      {"barrier_in_a_branch", barrier_in_a_branch},
      {"lane_outside_its_mask", lane_outside_its_mask},
      {"reads_unwritten_memory", reads_unwritten_memory},
      {"writes_past_the_end", writes_past_the_end},
      {"writes_past_the_end_of_shared_memory", writes_past_the_end_of_shared_memory},
  };
  const auto kernel = kernels.at(name);
  cuda_on_cpu::launch(1, 64, reversed, [&] { kernel(out); });
}
