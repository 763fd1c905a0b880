// Arrays on GPUs, as plans see them, and the engine that works on them; CUDA itself is nowhere needed.
#pragma once

#include <deque>

#include "../cuda/engine.h"
#include "arrays.h"

namespace fusedstep {

// Whether an array is the kind that CuPy makes. CuPy is never imported for this.
bool is_cupy(py::handle array);

// The engine, imported when it is first needed, which is for `name`.
const cuda::Engine& gpu_engine(const Name& name);

// Look at an array on a GPU. Where another library than CuPy says so, `stream` becomes that whose work it comes from.
Sight see_on_gpu(const py::object& array, const Name& name, cuda::Stream* stream = nullptr);

// A hyperparameter or factor: a number, or a float64 array of one element on a GPU, whose device is stored.
cuda::Number number_of(py::handle object, const Name& name, int* device);

// The stream that CuPy uses now on a device, or the default stream where there is no CuPy.
cuda::Stream current_stream(int device);
// That of an object with __cuda_stream__.
cuda::Stream stream_of(py::handle object);

// Before how many elements of its own an array has a vector's boundary.
int8_t head_of(const void* data, Type type, Type param);

// What the device is to know of a tensor.
cuda::Tensor tensor_on_gpu(const Slot& slot, int64_t size, int32_t device);
cuda::Gradient gradient_on_gpu(const Slot& slot, int32_t place, int32_t row);

// Which of the two loops a row of hyperparameters needs.
cuda::Weight weight_of(Variant variant);

// Arrays of other libraries that a stream still works on.
class InFlight {
public:
    void add(const cuda::Engine& engine, int device, cuda::Stream stream, std::vector<py::object> arrays);
    // Let go of those that are no longer needed.
    void sweep();

private:
    std::deque<std::pair<std::unique_ptr<cuda::Mark>, std::vector<py::object>>> waiting_;
};

}  // namespace fusedstep
