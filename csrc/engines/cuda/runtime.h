// The CUDA runtime, with errors as exceptions, and with events and memory as objects that own them.
#pragma once

#include <cuda_runtime.h>

#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "engine.h"

namespace fusedstep::cuda {

// Raise an error of CUDA, and clear it, so that the next call is not blamed.
inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();
    throw std::runtime_error(std::string(what) + " failed with " + cudaGetErrorName(error) + ": " +
                             cudaGetErrorString(error));
}

// An object during whose life a device is CUDA's current one.
class OnDevice {
public:
    explicit OnDevice(int device) {
        check(cudaGetDevice(&before_), "asking for the current GPU");
        if (device == before_) return;
        check(cudaSetDevice(device), "choosing a GPU");
        changed_ = true;
    }
    ~OnDevice() {
        if (changed_) cudaSetDevice(before_);
    }
    OnDevice(const OnDevice&) = delete;

private:
    int before_;
    bool changed_ = false;
};

// An object during whose life the thread may make any call, even while some other stream is being captured.
class Unrelated {
public:
    Unrelated() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    ~Unrelated() { cudaThreadExchangeStreamCaptureMode(&mode_); }
    Unrelated(const Unrelated&) = delete;

private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

inline cudaStream_t stream_of(Stream stream) {
    return reinterpret_cast<cudaStream_t>(stream);
}

inline bool is_capturing(Stream stream) {
    cudaStreamCaptureStatus status;
    check(cudaStreamIsCapturing(stream_of(stream), &status), "asking whether a stream is captured");
    return status != cudaStreamCaptureStatusNone;
}

// A point in the work of a stream, of the device that is current when it is made.
class Event {
public:
    Event() { check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "making an event"); }
    ~Event() {
        if (event_) cudaEventDestroy(event_);
    }
    Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
    Event& operator=(Event&&) = delete;

    void record(Stream stream) { check(cudaEventRecord(event_, stream_of(stream)), "recording an event"); }
    void let_wait(Stream stream) const {
        check(cudaStreamWaitEvent(stream_of(stream), event_, 0), "waiting for an event");
    }
    bool is_reached() const {
        const Unrelated mode;
        const cudaError_t error = cudaEventQuery(event_);
        if (error == cudaErrorNotReady) return cudaGetLastError(), false;
        check(error, "asking for an event");
        return true;
    }
    void wait() const { check(cudaEventSynchronize(event_), "waiting for a step"); }

private:
    cudaEvent_t event_ = nullptr;
};

// The threads of a block, and the memory that they share beside what their kernel names.
struct Threads {
    Threads(int count, int64_t shared_bytes = 0) : count(count), shared_bytes(shared_bytes) {}
    int count;
    int64_t shared_bytes;
};

template <class... A>
void launch(void (*kernel)(A...), int64_t blocks, Threads threads, Stream stream,
            std::type_identity_t<A>... arguments) {
    void* list[] = {&arguments...};
    check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads.count), list,
                           static_cast<size_t>(threads.shared_bytes), stream_of(stream)),
          "starting a kernel");
}

struct OutOfMemory : std::bad_alloc {
    const char* what() const noexcept override {
        return "the GPU has no memory left for the tables of a step; free some, as by "
               "cupy.get_default_memory_pool().free_all_blocks()";
    }
};

// Memory on the current device, allocated and freed immediately, or in the order of a stream.
class Memory {
public:
    Memory() = default;
    Memory(int64_t bytes, const Stream* stream) : ordered_(stream != nullptr), stream_(stream ? *stream : 0) {
        if (bytes == 0) return;
        const Unrelated mode;
        cudaError_t error = ordered_ ? cudaMallocAsync(&data_, bytes, stream_of(stream_)) : cudaMalloc(&data_, bytes);
        if (ordered_ && error == cudaErrorNotSupported) {  // an old GPU
            cudaGetLastError();
            ordered_ = false;
            error = cudaMalloc(&data_, bytes);
        }
        if (error == cudaErrorMemoryAllocation) {
            cudaGetLastError();
            throw OutOfMemory();
        }
        check(error, "taking memory of the GPU");
    }
    ~Memory() {
        const Unrelated mode;
        if (data_) ordered_ ? cudaFreeAsync(data_, stream_of(stream_)) : cudaFree(data_);
    }
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        swap(other);
        return *this;
    }

    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }

private:
    void swap(Memory& other) {
        std::swap(data_, other.data_);
        std::swap(ordered_, other.ordered_);
        std::swap(stream_, other.stream_);
    }

    void* data_ = nullptr;
    bool ordered_ = false;
    Stream stream_ = 0;
};

}  // namespace fusedstep::cuda
