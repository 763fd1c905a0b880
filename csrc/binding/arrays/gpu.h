// Arrays on GPUs, as plans see them, and the engine that works on them. Nothing here needs CUDA to be compiled.
#pragma once

#include "binding/arrays/view.h"
#include "engine.h"

namespace fusedstep {

// Whether an array is the kind that CuPy makes. CuPy is never imported for this.
bool is_cupy(py::handle array);

// The engine for GPUs, imported when an array on a GPU needs it for the first time; messages call the array `name`.
const Engine& gpu_engine(const Name& name);

Sight see_on_gpu(const py::object& array, const Name& name, Foreigners* foreign);

// A hyperparameter or factor, which may be an array of one element on a GPU, float64 or float32. All such arrays of a
// step are on one GPU, whose number is kept in `device`.
Number number_of(py::handle object, const Name& name, int* device, Foreigners* foreign);

// The stream that CuPy uses now on a device, or the default stream where there is no CuPy.
Stream current_stream(int device);
// A stream whose handle may be 0, as that of the default stream is.
Stream legacy_if_null(Stream stream);
// Let a step on a device be in order with what a library does there now.
void note_stream(const dlpack::Exchange& library, int device, Foreigners* foreign);
// The stream of an object with __cuda_stream__.
Stream stream_of(py::handle object);

// The order of a call's work among the streams of GPUs: after and before the work of other streams on foreign arrays,
// which are kept until the call's work is done.
class StreamOrder {
public:
    StreamOrder(const Streams& gpu, std::span<const int> devices, std::span<const Stream> streams, Foreigners foreign)
        : gpu_(gpu), devices_(devices), streams_(streams), foreign_(std::move(foreign)) {}

    // Make the streams of the work wait for all that the other streams have been asked to do.
    void begin() const { order(true); }
    // Make the other streams wait for the work, and keep foreign arrays until it is done.
    void end();
    // Whether the work goes into a graph. This is known once `begin` has been called.
    bool is_captured() const;

private:
    void order(bool before) const;
    Stream stream_on(int device) const;

    const Streams& gpu_;
    const std::span<const int> devices_;
    const std::span<const Stream> streams_;
    Foreigners foreign_;
};

}  // namespace fusedstep
