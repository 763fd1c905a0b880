// The state of the emulated runtime: errors, memory, streams, events, captures, and the functions that change it.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "fibers.h"

#pragma GCC visibility push(hidden)

#define EMULATOR_ERRORS(X)                                                                                    \
    X(cudaSuccess, 0, "no error")                                                                             \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                                           \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                                          \
    X(cudaErrorInitializationError, 3, "initialization error")                                                \
    X(cudaErrorCudartUnloading, 4, "driver shutting down")                                                    \
    X(cudaErrorInvalidConfiguration, 9, "invalid configuration argument")                                     \
    X(cudaErrorInsufficientDriver, 35, "CUDA driver version is insufficient for CUDA runtime version")        \
    X(cudaErrorInvalidDeviceFunction, 98, "invalid device function")                                          \
    X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                                           \
    X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                                                  \
    X(cudaErrorNoKernelImageForDevice, 209, "no kernel image is available for execution on the device")       \
    X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                                         \
    X(cudaErrorNotReady, 600, "device not ready")                                                             \
    X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")                               \
    X(cudaErrorPeerAccessAlreadyEnabled, 704, "peer access is already enabled")                               \
    X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                                              \
    X(cudaErrorNotSupported, 801, "operation not supported")                                                  \
    X(cudaErrorStreamCaptureUnsupported, 900, "operation not permitted when stream is capturing")             \
    X(cudaErrorStreamCaptureInvalidated, 901, "operation failed due to a previous error during capture")      \
    X(cudaErrorStreamCaptureMerge, 902, "operation would result in a merge of separate capture sequences")    \
    X(cudaErrorStreamCaptureUnmatched, 903, "capture was not ended in the same stream as it began")           \
    X(cudaErrorStreamCaptureUnjoined, 904, "capturing stream has unjoined work")                              \
    X(cudaErrorStreamCaptureIsolation, 905, "dependency created on uncaptured work in another stream")        \
    X(cudaErrorStreamCaptureImplicit, 906,                                                                    \
      "operation would make the legacy stream depend on a capturing blocking stream")                         \
    X(cudaErrorCapturedEvent, 907, "operation not permitted on an event last recorded in a capturing stream") \
    X(cudaErrorStreamCaptureWrongThread, 908,                                                                 \
      "attempt to terminate a thread-local capture sequence from another thread")                             \
    X(cudaErrorUnknown, 999, "unknown error")

enum cudaError : int {
#define EMULATOR_ERROR(name, number, text) name = number,
    EMULATOR_ERRORS(EMULATOR_ERROR)
#undef EMULATOR_ERROR
};
using cudaError_t = cudaError;

enum cudaMemoryType {
    cudaMemoryTypeUnregistered,
    cudaMemoryTypeHost,
    cudaMemoryTypeDevice,
    cudaMemoryTypeManaged,
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed,
};

using cudaStream_t = struct CUstream_st*;
using cudaEvent_t = struct CUevent_st*;
using cudaGraph_t = struct CUgraph_st*;
using cudaGraphExec_t = struct CUgraphExec_st*;

namespace emulator {

using Work = std::function<void()>;

struct Capture {
    CUstream_st* origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool invalid = false;
    std::vector<Work> works = {};
    std::set<void*> memory = {};  // allocated and not freed in the capture: it belongs to the graph
};

// A recorded event: a place in the work of a stream, or in the capture that the stream was part of.
struct Record {
    CUstream_st* stream;
    std::shared_ptr<Capture> capture;
    size_t captured;
    bool passed = false;
};

}  // namespace emulator

struct CUstream_st {
    int device;
    uintptr_t special;  // 1 or 2 for a default stream (legacy, per thread), 0 for any other
    bool blocking;
    std::deque<emulator::Work> works = {};
    std::shared_ptr<emulator::Capture> capture = {};
    size_t captured = 0;  // how many pieces of its work are in the capture
    size_t joined = 0;    // how many of the captured pieces another stream waits for
};

struct CUevent_st {
    int device;
    std::shared_ptr<emulator::Record> last;
};

struct CUgraph_st {
    std::vector<emulator::Work> works;
};

struct CUgraphExec_st {
    std::vector<emulator::Work> works;
};

namespace emulator {

struct Range {
    size_t bytes;
    int device;
    cudaMemoryType type;
};
using Ranges = std::map<uintptr_t, Range>;

struct Failure {
    int skip;
    cudaError_t error;
};

struct State {
    std::mutex lock;
    int devices = 1;
    std::vector<std::unique_ptr<CUstream_st>> streams;
    std::vector<std::unique_ptr<CUevent_st>> events;
    std::vector<std::shared_ptr<Capture>> captures;  // captures that have begun and not ended
    Ranges memory, places;                           // allocated memory, and other memory that tests have declared
    std::deque<std::pair<void*, size_t>> freed;      // poisoned and kept for a while, so that late writes harm nobody
    size_t bytes_freed = 0;
    std::set<std::pair<int, int>> peers;
    std::map<std::string, long long> calls;
    std::map<std::string, Failure> failures;
};

// Never deleted: arrays of Python may need it until the process ends.
inline State& state = *new State;

inline thread_local int device = 0;
inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local cudaStreamCaptureMode capture_mode = cudaStreamCaptureModeGlobal;

inline bool is_device(int number) {
    return number >= 0 && number < state.devices;
}

// Memory.

inline const Range* find(const Ranges& ranges, const void* pointer) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    auto next = ranges.upper_bound(address);
    if (next == ranges.begin()) return nullptr;
    const auto& [begin, range] = *--next;
    return address - begin < range.bytes ? &range : nullptr;
}

inline const Range* find_memory(const void* pointer) {
    const Range* place = find(state.places, pointer);
    return place ? place : find(state.memory, pointer);
}

inline bool is_pageable(const void* pointer) {
    const Range* range = find_memory(pointer);
    return !range || range->type == cudaMemoryTypeUnregistered;
}

inline cudaError_t allocate(void** address, size_t bytes, int device, cudaMemoryType type) {
    *address = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (bytes > size_t(1) << 46) return cudaErrorMemoryAllocation;
    *address = aligned_alloc(512, (bytes + 511) / 512 * 512);
    if (!*address) return cudaErrorMemoryAllocation;
    memset(*address, 0xcc, bytes);
    state.memory[reinterpret_cast<uintptr_t>(*address)] = {bytes, device, type};
    return cudaSuccess;
}

inline bool is_allocated(void* address) {
    return state.memory.contains(reinterpret_cast<uintptr_t>(address));
}

inline void release(void* address) {
    constexpr size_t kKept = 64 << 20;
    const auto found = state.memory.find(reinterpret_cast<uintptr_t>(address));
    if (found == state.memory.end()) return;
    memset(address, 0xcc, found->second.bytes);
    state.freed.emplace_back(address, found->second.bytes);
    state.bytes_freed += found->second.bytes;
    state.memory.erase(found);
    for (; state.bytes_freed > kKept; state.freed.pop_front()) {
        free(state.freed.front().first);
        state.bytes_freed -= state.freed.front().second;
    }
}

// Streams. Their work is done when somebody waits for it, and not before.

inline cudaStream_t find_stream(cudaStream_t handle, int device = emulator::device) {
    if (!is_device(device)) return nullptr;
    const auto number = reinterpret_cast<uintptr_t>(handle);
    const bool is_default = number <= 2;
    const uintptr_t special = number == 2 ? 2 : 1;
    for (const auto& stream : state.streams)
        if (is_default ? stream->device == device && stream->special == special : stream.get() == handle)
            return stream.get();
    if (!is_default) return nullptr;
    state.streams.push_back(std::make_unique<CUstream_st>(device, special, true));
    return state.streams.back().get();
}

inline void run_one(cudaStream_t stream) {
    const Work work = std::move(stream->works.front());
    stream->works.pop_front();
    work();
}

inline void run(cudaStream_t stream) {
    while (!stream->works.empty()) run_one(stream);
}

inline void run(const Record& record) {
    while (!record.passed) run_one(record.stream);
}

// Run the streams of a device, or of all devices.
inline void run_all(int device = -1) {
    for (size_t i = 0; i < state.streams.size(); ++i)
        if (device < 0 || state.streams[i]->device == device) run(state.streams[i].get());
}

inline cudaError_t invalidate(Capture& capture, cudaError_t error) {
    capture.invalid = true;
    return error;
}

// The error of a call that may wait for work, while a stream is captured in a mode that forbids such calls.
inline cudaError_t refuse_in_capture() {
    for (const auto& capture : state.captures) {
        const bool own = capture->thread == std::this_thread::get_id() && capture->mode != cudaStreamCaptureModeRelaxed;
        const bool of_all = capture_mode == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal;
        if (capture_mode != cudaStreamCaptureModeRelaxed && (own || of_all))
            return invalidate(*capture, cudaErrorStreamCaptureUnsupported);
    }
    return cudaSuccess;
}

// The error of a call that waits for this stream. No mode allows it for a stream that is captured.
inline cudaError_t refuse_in_capture(cudaStream_t stream) {
    if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
    return refuse_in_capture();
}

inline cudaError_t submit(cudaStream_t stream, Work work) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream->capture) {
        if (stream->capture->invalid) return cudaErrorStreamCaptureInvalidated;
        stream->capture->works.push_back(std::move(work));
        ++stream->captured;
        return cudaSuccess;
    }
    if (stream->special == 1)
        for (const auto& capture : state.captures)
            if (capture->origin->blocking && capture->origin->device == stream->device)
                return invalidate(*capture, cudaErrorStreamCaptureImplicit);
    stream->works.push_back(std::move(work));
    return cudaSuccess;
}

inline cudaError_t copy(void* to, const void* from, size_t bytes, cudaStream_t stream, bool from_host) {
    if (!from_host || !is_pageable(from)) return submit(stream, [=] { memmove(to, from, bytes); });
    const auto source = static_cast<const char*>(from);
    return submit(stream, [to, staged = std::vector<char>(source, source + bytes)] {
        if (!staged.empty()) memcpy(to, staged.data(), staged.size());
    });
}

inline cudaError_t fill(void* to, int byte, size_t bytes, cudaStream_t stream) {
    return submit(stream, [=] { memset(to, byte, bytes); });
}

inline cudaError_t free_at_once(void* address) {
    if (!address) return cudaSuccess;
    if (!is_allocated(address)) return cudaErrorInvalidValue;
    run_all();
    release(address);
    return cudaSuccess;
}

inline cudaError_t allocate_in_order(void** address, size_t bytes, cudaStream_t stream) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t error = allocate(address, bytes, stream->device, cudaMemoryTypeDevice)) return error;
    if (!stream->capture) return cudaSuccess;
    stream->capture->memory.insert(*address);
    return fill(*address, 0xcc, bytes, stream);  // poisoned by every launch of the graph
}

inline cudaError_t free_in_order(void* address, cudaStream_t stream) {
    if (!address) return cudaSuccess;
    if (!is_allocated(address)) return cudaErrorInvalidValue;
    if (!stream || !stream->capture) return submit(stream, [=] { release(address); });
    if (!stream->capture->memory.erase(address)) return invalidate(*stream->capture, cudaErrorInvalidValue);
    return fill(address, 0xcc, state.memory[reinterpret_cast<uintptr_t>(address)].bytes, stream);
}

// End a capture: its streams go on without it.
inline void abandon(std::shared_ptr<Capture> capture) {
    for (const auto& stream : state.streams)
        if (stream->capture == capture) stream->capture = nullptr;
    std::erase(state.captures, capture);
}

inline cudaStream_t create_stream(int device, bool blocking) {
    state.streams.push_back(std::make_unique<CUstream_st>(device, 0, blocking));
    return state.streams.back().get();
}

inline cudaError_t destroy_stream(cudaStream_t stream) {
    if (!stream || stream->special) return cudaErrorInvalidResourceHandle;
    if (stream->capture) abandon(stream->capture);
    run(stream);
    std::erase_if(state.streams, [=](const auto& each) { return each.get() == stream; });
    return cudaSuccess;
}

inline cudaError_t synchronize(cudaStream_t stream) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (const cudaError_t error = refuse_in_capture(stream)) return error;
    run(stream);
    return cudaSuccess;
}

// Events.

inline bool is_event(cudaEvent_t event) {
    return std::ranges::any_of(state.events, [=](const auto& each) { return each.get() == event; });
}

inline cudaEvent_t create_event(int device) {
    state.events.push_back(std::make_unique<CUevent_st>(device, nullptr));
    return state.events.back().get();
}

inline cudaError_t destroy_event(cudaEvent_t event) {
    return std::erase_if(state.events, [=](const auto& each) { return each.get() == event; })
               ? cudaSuccess
               : cudaErrorInvalidResourceHandle;
}

inline cudaError_t record(cudaEvent_t event, cudaStream_t stream) {
    if (!is_event(event) || !stream || stream->device != event->device) return cudaErrorInvalidResourceHandle;
    auto record = std::make_shared<Record>(stream, stream->capture, stream->captured);
    if (!stream->capture) {
        if (const cudaError_t error = submit(stream, [record] { record->passed = true; })) return error;
    } else if (stream->capture->invalid) {
        return cudaErrorStreamCaptureInvalidated;
    }
    event->last = record;
    return cudaSuccess;
}

inline cudaError_t query(cudaEvent_t event) {
    if (!is_event(event)) return cudaErrorInvalidResourceHandle;
    const auto record = event->last;
    if (record && record->capture) return invalidate(*record->capture, cudaErrorCapturedEvent);
    if (const cudaError_t error = refuse_in_capture()) return error;
    return !record || record->passed ? cudaSuccess : cudaErrorNotReady;
}

// Wait for an event that was recorded in a capture. Work of a capture is kept in the order in which it was submitted,
// so that the stream only has to join the capture.
inline cudaError_t wait_captured(cudaStream_t stream, const Record& record) {
    if (!std::ranges::count(state.captures, record.capture)) return cudaErrorCapturedEvent;
    if (stream->capture && stream->capture != record.capture) {
        stream->capture->invalid = true;
        return invalidate(*record.capture, cudaErrorStreamCaptureMerge);
    }
    if (record.capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!stream->capture) {
        if (stream->special == 1) return invalidate(*record.capture, cudaErrorStreamCaptureImplicit);
        stream->capture = record.capture;
        stream->captured = stream->joined = 0;
    }
    if (stream != record.stream) record.stream->joined = std::max(record.stream->joined, record.captured);
    return cudaSuccess;
}

inline cudaError_t wait(cudaStream_t stream, cudaEvent_t event) {
    if (!is_event(event) || !stream) return cudaErrorInvalidResourceHandle;
    const auto record = event->last;
    if (!record) return cudaSuccess;
    if (record->capture) return wait_captured(stream, *record);
    if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureIsolation);
    return submit(stream, [record] { run(*record); });
}

// Captures.

inline cudaError_t begin_capture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream->special == 1) return cudaErrorStreamCaptureUnsupported;
    if (stream->capture) return invalidate(*stream->capture, cudaErrorStreamCaptureUnsupported);
    stream->capture = std::make_shared<Capture>(stream, mode, std::this_thread::get_id());
    stream->captured = stream->joined = 0;
    state.captures.push_back(stream->capture);
    return cudaSuccess;
}

inline cudaError_t end_capture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = nullptr;
    if (!stream) return cudaErrorInvalidResourceHandle;
    const std::shared_ptr<Capture> capture = stream->capture;
    if (!capture) return cudaErrorInvalidValue;
    if (capture->origin != stream) return invalidate(*capture, cudaErrorStreamCaptureUnmatched);
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return invalidate(*capture, cudaErrorStreamCaptureWrongThread);
    bool joined = true;
    for (const auto& each : state.streams)
        if (each->capture == capture && each.get() != stream) joined = joined && each->joined == each->captured;
    abandon(capture);
    if (capture->invalid) return cudaErrorStreamCaptureInvalidated;
    if (!joined) return cudaErrorStreamCaptureUnjoined;
    *graph = new CUgraph_st{std::move(capture->works)};
    return cudaSuccess;
}

inline cudaError_t launch_graph(cudaGraphExec_t graph, cudaStream_t stream) {
    if (!graph) return cudaErrorInvalidValue;
    return submit(stream, [works = graph->works] {
        for (const Work& work : works) work();
    });
}

// Calls.

template <class Body>
cudaError_t call(const char* name, Body body) {
    const std::lock_guard guard(state.lock);
    ++state.calls[name];
    cudaError_t error = cudaSuccess;
    const auto failure = state.failures.find(name);
    if (failure != state.failures.end() && failure->second.skip-- == 0) {
        error = failure->second.error;
        state.failures.erase(failure);
    } else {
        error = body();
    }
    if (error && error != cudaErrorNotReady) last_error = error;
    return error;
}

// A call that is not allowed while work is captured.
template <class Body>
cudaError_t call_outside_capture(const char* name, Body body) {
    return call(name, [&] {
        const cudaError_t error = refuse_in_capture();
        return error ? error : body();
    });
}

}  // namespace emulator

#pragma GCC visibility pop
