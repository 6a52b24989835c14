// The binding of the pool: a block as a DLPack capsule, which PyTorch makes a tensor of.
#pragma once

#include <pybind11/stl.h>

#include <new>
#include <utility>
#include <vector>

#include "pool.h"

namespace fastrlhf {

// As in dlpack.h, version 0.x: what a capsule named "dltensor" holds.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

struct PoolTensor {
  DLManagedTensor managed;
  std::vector<int64_t> shape;
  int64_t bytes;
};

inline void delete_pool_tensor(DLManagedTensor* managed) {
  PoolTensor* const owner = (PoolTensor*)managed->context;
  pool_give(managed->tensor.data, owner->bytes);
  delete owner;
}

inline pybind11::capsule pool_tensor(std::vector<int64_t> shape) {
  int64_t bytes = sizeof(float);
  for (int64_t size : shape) bytes *= size;
  void* const data = pool_take(bytes);
  if (!data) throw std::bad_alloc();
  PoolTensor* const owner = new PoolTensor{{}, std::move(shape), bytes};
  // on the CPU (1), float (2) of 32 bits, contiguous
  owner->managed = {{data, 1, 0, (int32_t)owner->shape.size(), 2, 32, 1, owner->shape.data(), nullptr, 0},
                    owner,
                    &delete_pool_tensor};
  return pybind11::capsule(&owner->managed, "dltensor", [](PyObject* capsule) {
    // who takes the tensor over renames the capsule
    if (PyCapsule_IsValid(capsule, "dltensor"))
      delete_pool_tensor((DLManagedTensor*)PyCapsule_GetPointer(capsule, "dltensor"));
  });
}

inline void bind_pool(pybind11::module_& module) {
  module.def("pool_tensor", &pool_tensor);
  module.def("pool_trim", &pool_trim);
  module.def("pool_bytes", [] {
    const PoolBytes bytes = pool_bytes();
    return std::make_pair(bytes.taken, bytes.idle);
  });
}

}  // namespace fastrlhf
