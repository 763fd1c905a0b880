// The part of the CUDA runtime that the project uses, emulated on the host: g++ compiles the sources of the GPU engine
// with this folder first among its include paths. A kernel runs thread by thread. A stream does nothing until somebody
// waits for it, so that code which relies on luck fails. Only events order streams: a default stream waits for no
// other.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <tuple>
#include <utility>

#include "fibers.h"
#include "state.h"

#define CUDART_VERSION 13000

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

#pragma GCC visibility push(hidden)

#define cudaStreamLegacy (reinterpret_cast<cudaStream_t>(1))
#define cudaStreamPerThread (reinterpret_cast<cudaStream_t>(2))

enum : unsigned { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
enum : unsigned { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
enum : unsigned { cudaHostAllocDefault = 0 };

enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone,
    cudaStreamCaptureStatusActive,
    cudaStreamCaptureStatusInvalidated,
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrUnifiedAddressing = 41,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrManagedMemory = 83,
    cudaDevAttrMemoryPoolsSupported = 115,
};

struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
};

struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};

// Errors, versions.

inline const char* cudaGetErrorName(cudaError_t error) {
#define EMULATOR_ERROR(name, number, text) \
    if (error == name) return #name;
    EMULATOR_ERRORS(EMULATOR_ERROR)
#undef EMULATOR_ERROR
    return "unrecognized error code";
}

inline const char* cudaGetErrorString(cudaError_t error) {
#define EMULATOR_ERROR(name, number, text) \
    if (error == name) return text;
    EMULATOR_ERRORS(EMULATOR_ERROR)
#undef EMULATOR_ERROR
    return "unrecognized error code";
}

inline cudaError_t cudaPeekAtLastError() {
    return emulator::last_error;
}

inline cudaError_t cudaGetLastError() {
    return std::exchange(emulator::last_error, cudaSuccess);
}

inline cudaError_t cudaRuntimeGetVersion(int* version) {
    return emulator::call(__func__, [&] { return *version = CUDART_VERSION, cudaSuccess; });
}

inline cudaError_t cudaDriverGetVersion(int* version) {
    return emulator::call(__func__, [&] { return *version = CUDART_VERSION, cudaSuccess; });
}

// Devices.

inline cudaError_t cudaGetDeviceCount(int* count) {
    return emulator::call(__func__, [&] {
        *count = emulator::state.devices;
        return *count ? cudaSuccess : cudaErrorNoDevice;
    });
}

inline cudaError_t cudaGetDevice(int* device) {
    return emulator::call(__func__, [&] {
        *device = emulator::device;
        return emulator::state.devices ? cudaSuccess : cudaErrorNoDevice;
    });
}

inline cudaError_t cudaSetDevice(int device) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(device)) return cudaErrorInvalidDevice;
        emulator::device = device;
        return cudaSuccess;
    });
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(device)) return cudaErrorInvalidDevice;
        switch (attribute) {
            case cudaDevAttrMaxThreadsPerBlock:
                *value = emulator::kMaxThreads;
                break;
            case cudaDevAttrWarpSize:
                *value = emulator::kWarp;
                break;
            case cudaDevAttrMultiProcessorCount:
                *value = 2;
                break;
            case cudaDevAttrMaxThreadsPerMultiProcessor:
                *value = 2048;
                break;
            case cudaDevAttrComputeCapabilityMajor:
                *value = 9;
                break;
            case cudaDevAttrComputeCapabilityMinor:
                *value = 0;
                break;
            case cudaDevAttrUnifiedAddressing:
            case cudaDevAttrManagedMemory:
            case cudaDevAttrMemoryPoolsSupported:
                *value = 1;
                break;
            default:
                *value = 0;
        }
        return cudaSuccess;
    });
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(device)) return cudaErrorInvalidDevice;
        *properties = {"Emulated GPU", size_t(1) << 34, 9, 0, 2};
        return cudaSuccess;
    });
}

inline cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(device) || !emulator::is_device(peer)) return cudaErrorInvalidDevice;
        *can = device != peer;
        return cudaSuccess;
    });
}

inline cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(peer) || peer == emulator::device) return cudaErrorInvalidDevice;
        const bool is_new = emulator::state.peers.emplace(emulator::device, peer).second;
        return is_new ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled;
    });
}

inline cudaError_t cudaDeviceSynchronize() {
    return emulator::call_outside_capture(__func__, [] {
        emulator::run_all(emulator::device);
        return cudaSuccess;
    });
}

// Memory.

template <class T>
cudaError_t cudaMalloc(T** address, size_t bytes) {
    return emulator::call_outside_capture(__func__, [&] {
        return emulator::allocate(reinterpret_cast<void**>(address), bytes, emulator::device, cudaMemoryTypeDevice);
    });
}

inline cudaError_t cudaFree(void* address) {
    return emulator::call_outside_capture(__func__, [&] { return emulator::free_at_once(address); });
}

template <class T>
cudaError_t cudaHostAlloc(T** address, size_t bytes, unsigned) {
    return emulator::call_outside_capture(__func__, [&] {
        return emulator::allocate(reinterpret_cast<void**>(address), bytes, emulator::device, cudaMemoryTypeHost);
    });
}

inline cudaError_t cudaFreeHost(void* address) {
    return emulator::call_outside_capture(__func__, [&] { return emulator::free_at_once(address); });
}

template <class T>
cudaError_t cudaMallocAsync(T** address, size_t bytes, cudaStream_t stream) {
    return emulator::call(__func__, [&] {
        return emulator::allocate_in_order(reinterpret_cast<void**>(address), bytes, emulator::find_stream(stream));
    });
}

inline cudaError_t cudaFreeAsync(void* address, cudaStream_t stream) {
    return emulator::call(__func__, [&] { return emulator::free_in_order(address, emulator::find_stream(stream)); });
}

inline cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream = nullptr) {
    return emulator::call(__func__, [&] { return emulator::fill(to, byte, bytes, emulator::find_stream(stream)); });
}

inline cudaError_t cudaMemset(void* to, int byte, size_t bytes) {
    return emulator::call(__func__, [&] { return emulator::fill(to, byte, bytes, emulator::find_stream(nullptr)); });
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t handle = nullptr) {
    return emulator::call(__func__, [&] {
        const cudaStream_t stream = emulator::find_stream(handle);
        const bool from_host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDefault;
        const bool captured = stream && stream->capture;  // a captured copy reads its source at every launch
        return emulator::copy(to, from, bytes, stream, from_host && !captured);
    });
}

inline cudaError_t cudaMemcpyPeerAsync(void* to, int to_device, const void* from, int from_device, size_t bytes,
                                       cudaStream_t stream = nullptr) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(to_device) || !emulator::is_device(from_device)) return cudaErrorInvalidDevice;
        return emulator::copy(to, from, bytes, emulator::find_stream(stream), false);
    });
}

inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    return emulator::call_outside_capture(__func__, [&] {
        const cudaStream_t stream = emulator::find_stream(nullptr);
        const cudaError_t error = emulator::copy(to, from, bytes, stream, false);
        return error ? error : emulator::synchronize(stream);
    });
}

// Memory that was neither allocated here nor declared by emulator_place passes for memory of device 0.
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    return emulator::call(__func__, [&] {
        const emulator::Range* found = emulator::find_memory(pointer);
        const auto [bytes, device, type] = found ? *found : emulator::Range{0, 0, cudaMemoryTypeDevice};
        void* const address = const_cast<void*>(pointer);
        const bool on_device = type != cudaMemoryTypeUnregistered, on_host = type != cudaMemoryTypeDevice;
        *attributes = {type, on_device ? device : -2, on_device ? address : nullptr, on_host ? address : nullptr};
        return cudaSuccess;
    });
}

// Kernels.

template <class... A>
cudaError_t cudaLaunchKernel(void (*kernel)(A...), dim3 grid, dim3 block, void** arguments, size_t shared = 0,
                             cudaStream_t handle = nullptr) {
    static_assert((std::is_trivially_copyable_v<A> && ...) && (sizeof(A) + ... + 0) <= 32764);
    return emulator::call(__func__, [&] {
        const uint64_t threads = uint64_t(block.x) * block.y * block.z;
        if (!kernel) return cudaErrorInvalidDeviceFunction;
        if (!threads || threads > emulator::kMaxThreads || !grid.x || !grid.y || !grid.z || grid.x > INT32_MAX ||
            grid.y > UINT16_MAX || grid.z > UINT16_MAX || block.z > 64)
            return cudaErrorInvalidConfiguration;
        if (shared > 48 << 10) return cudaErrorInvalidValue;
        const cudaStream_t stream = emulator::find_stream(handle);
        if (!stream || stream->device != emulator::device) return cudaErrorInvalidResourceHandle;
        const auto bound = [&]<size_t... i>(std::index_sequence<i...>) -> emulator::Work {
            return
                [kernel, values = std::tuple<A...>(*static_cast<A*>(arguments[i])...)] { std::apply(kernel, values); };
        }(std::index_sequence_for<A...>());
        return emulator::submit(stream, [=] { emulator::run_grid(bound, grid, block); });
    });
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
    return emulator::call(__func__, [&] { return *blocks = 2, cudaSuccess; });
}

// Streams.

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(emulator::device)) return cudaErrorNoDevice;
        *stream = emulator::create_stream(emulator::device, !(flags & cudaStreamNonBlocking));
        return cudaSuccess;
    });
}

inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return emulator::call(__func__, [&] { return emulator::destroy_stream(emulator::find_stream(stream)); });
}

inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return emulator::call(__func__, [&] { return emulator::synchronize(emulator::find_stream(stream)); });
}

// A query makes no progress: a loop of queries never ends.
inline cudaError_t cudaStreamQuery(cudaStream_t handle) {
    return emulator::call(__func__, [&] {
        const cudaStream_t stream = emulator::find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        if (const cudaError_t error = emulator::refuse_in_capture(stream)) return error;
        return stream->works.empty() ? cudaSuccess : cudaErrorNotReady;
    });
}

inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    return emulator::call(__func__, [&] { return emulator::wait(emulator::find_stream(stream), event); });
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    return emulator::call(__func__, [&] {
        const cudaStream_t stream = emulator::find_stream(handle);
        if (!stream) return cudaErrorInvalidResourceHandle;
        *status = !stream->capture           ? cudaStreamCaptureStatusNone
                  : stream->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                             : cudaStreamCaptureStatusActive;
        return cudaSuccess;
    });
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return emulator::call(__func__, [&] { return emulator::begin_capture(emulator::find_stream(stream), mode); });
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    return emulator::call(__func__, [&] { return emulator::end_capture(emulator::find_stream(stream), graph); });
}

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    return emulator::call(__func__, [&] { return std::swap(*mode, emulator::capture_mode), cudaSuccess; });
}

// Graphs.

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long = 0) {
    return emulator::call(__func__, [&] {
        if (!graph) return cudaErrorInvalidValue;
        *executable = new CUgraphExec_st{graph->works};
        return cudaSuccess;
    });
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    return emulator::call(__func__, [&] { return emulator::launch_graph(executable, emulator::find_stream(stream)); });
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    return emulator::call(__func__, [&] { return delete graph, cudaSuccess; });
}

inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    return emulator::call(__func__, [&] { return delete executable, cudaSuccess; });
}

// Events.

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return emulator::call(__func__, [&] {
        if (!emulator::is_device(emulator::device)) return cudaErrorNoDevice;
        *event = emulator::create_event(emulator::device);
        return cudaSuccess;
    });
}

inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
    return emulator::call(__func__, [&] { return emulator::record(event, emulator::find_stream(stream)); });
}

inline cudaError_t cudaEventQuery(cudaEvent_t event) {
    return emulator::call(__func__, [&] { return emulator::query(event); });
}

inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return emulator::call(__func__, [&] {
        const cudaError_t error = emulator::query(event);
        if (error != cudaErrorNotReady) return error;
        emulator::run(*event->last);
        return cudaSuccess;
    });
}

inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return emulator::call(__func__, [&] { return emulator::destroy_event(event); });
}

#pragma GCC visibility pop
