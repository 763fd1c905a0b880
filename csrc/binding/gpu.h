// Arrays on GPUs, as plans see them, and the engine that works on them; CUDA itself is nowhere needed.
#pragma once

#include "binding/arrays.h"
#include "engines/cuda/engine.h"

namespace fusedstep {

// Whether an array is the kind that CuPy makes. CuPy is never imported for this.
bool is_cupy(py::handle array);

// The engine, imported when it is first needed, which is for `name`.
const cuda::Engine& gpu_engine(const Name& name);

Sight see_on_gpu(const py::object& array, const Name& name, Foreigners* foreign);

// A hyperparameter or factor that may be a float64 array of one element on a GPU. All of a step are on one, which is
// stored in `device`.
cuda::Number number_of(py::handle object, const Name& name, int* device, Foreigners* foreign);

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
cuda::Body body_of(Variant variant);

// What surrounds the work of a call on GPUs: streams that it must be ordered with, and arrays that must outlive it.
class StreamOrder {
public:
    StreamOrder(const cuda::Engine& engine, std::span<const int> devices, std::span<const cuda::Stream> streams,
                Foreigners foreign)
        : engine_(engine), devices_(devices), streams_(streams), foreign_(std::move(foreign)) {}

    // The streams of the work wait for all that the others have been asked to do.
    void begin() const { order(true); }
    // The others wait for the work, and foreign arrays are kept until it is done.
    void end();
    // Whether the work goes into a graph, known once it has begun.
    bool is_captured() const;

private:
    void order(bool before) const;
    cuda::Stream stream_on(int device) const;

    const cuda::Engine& engine_;
    const std::span<const int> devices_;
    const std::span<const cuda::Stream> streams_;
    Foreigners foreign_;
};

}  // namespace fusedstep
