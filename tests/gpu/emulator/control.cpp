// Functions with which tests control the emulator of a library, through ctypes. This file is compiled into the library
// once. A function that returns int returns a cudaError_t, unless its comment says otherwise. A stream is given by its
// handle, which may be that of a default stream, and its device.
#include "cuda_runtime.h"

#define CONTROL extern "C" __attribute__((visibility("default")))

namespace {

using namespace emulator;

template <class Body>
auto locked(Body body) {
    const std::lock_guard guard(state.lock);
    return body();
}

}  // namespace

// Devices.

CONTROL void emulator_set_device_count(int count) {
    locked([&] { state.devices = count; });
}

// Return the number of devices.
CONTROL int emulator_device_count() {
    return locked([] { return state.devices; });
}

// Set the current device of this thread.
CONTROL int emulator_set_device(int number) {
    return locked([&] { return is_device(number) ? device = number, cudaSuccess : cudaErrorInvalidDevice; });
}

// Return the current device of this thread.
CONTROL int emulator_get_device() {
    return device;
}

CONTROL int emulator_device_synchronize(int device) {
    return locked([&]() -> cudaError_t {
        if (const cudaError_t error = refuse_in_capture()) return error;
        run_all(device);
        return cudaSuccess;
    });
}

// Calls.

// Make a runtime function fail once, after `skip` calls that succeed.
CONTROL void emulator_fail(const char* name, int skip, int error) {
    locked([&] { state.failures[name] = {skip, static_cast<cudaError_t>(error)}; });
}

// Return how often a runtime function was called.
CONTROL long long emulator_calls(const char* name) {
    return locked([&] { return state.calls[name]; });
}

// Set all counts of calls to 0, and forget failures that have not happened.
CONTROL void emulator_reset_calls() {
    locked([] { state.calls.clear(), state.failures.clear(); });
}

// Memory.

// Declare what cudaPointerGetAttributes says about this memory from now on. A type below 0 takes the declaration back.
CONTROL void emulator_place(void* pointer, size_t bytes, int device, int type) {
    locked([&] {
        const auto address = reinterpret_cast<uintptr_t>(pointer);
        if (type < 0)
            state.places.erase(address);
        else
            state.places[address] = {bytes, device, static_cast<cudaMemoryType>(type)};
    });
}

// Return the address of new memory, or null.
CONTROL void* emulator_malloc(size_t bytes, int device) {
    void* address = nullptr;
    locked([&] { allocate(&address, bytes, device, cudaMemoryTypeDevice); });
    return address;
}

// Free memory when the stream, which is on the device of the memory, gets there.
CONTROL int emulator_free(void* pointer, cudaStream_t stream) {
    return locked([&] {
        const Range* range = find(state.memory, pointer);
        return range ? free_in_order(pointer, find_stream(stream, range->device)) : cudaErrorInvalidValue;
    });
}

CONTROL int emulator_copy(void* to, const void* from, size_t bytes, cudaStream_t stream, int device) {
    return locked([&] { return copy(to, from, bytes, find_stream(stream, device), true); });
}

CONTROL int emulator_fill(void* pointer, int byte, size_t bytes, cudaStream_t stream, int device) {
    return locked([&] { return fill(pointer, byte, bytes, find_stream(stream, device)); });
}

// Overwrite memory when the stream gets there: a pool of memory may then give it to somebody else. No capture contains
// this.
CONTROL int emulator_poison(void* pointer, size_t bytes, cudaStream_t stream, int device) {
    return locked([&] {
        const cudaStream_t found = find_stream(stream, device);
        if (!found) return cudaErrorInvalidResourceHandle;
        found->works.push_back([=] { memset(pointer, 0xcc, bytes); });
        return cudaSuccess;
    });
}

// Streams.

CONTROL cudaStream_t emulator_stream_create(int device, int non_blocking) {
    return locked([&] { return is_device(device) ? create_stream(device, !non_blocking) : nullptr; });
}

CONTROL int emulator_stream_destroy(cudaStream_t stream) {
    return locked([&] { return destroy_stream(find_stream(stream)); });
}

CONTROL int emulator_stream_synchronize(cudaStream_t stream, int device) {
    return locked([&] { return synchronize(find_stream(stream, device)); });
}

// Return how many pieces of work a stream still has to do, or -1 if there is no such stream.
CONTROL long long emulator_pending(cudaStream_t stream, int device) {
    return locked([&]() -> long long {
        const cudaStream_t found = find_stream(stream, device);
        return found ? static_cast<long long>(found->works.size()) : -1;
    });
}

// Events.

CONTROL cudaEvent_t emulator_event_create(int device) {
    return locked([&] { return is_device(device) ? create_event(device) : nullptr; });
}

CONTROL int emulator_event_destroy(cudaEvent_t event) {
    return locked([&] { return destroy_event(event); });
}

CONTROL int emulator_event_record(cudaEvent_t event, cudaStream_t stream, int device) {
    return locked([&] { return record(event, find_stream(stream, device)); });
}

CONTROL int emulator_stream_wait(cudaStream_t stream, int device, cudaEvent_t event) {
    return locked([&] { return wait(find_stream(stream, device), event); });
}

// Let a stream wait for the present work of another one. Default streams are those of this thread's device.
CONTROL int emulator_record_wait(cudaStream_t from, cudaStream_t to) {
    return locked([&] {
        const cudaStream_t before = find_stream(from), after = find_stream(to);
        if (!before || !after) return cudaErrorInvalidResourceHandle;
        const cudaEvent_t event = create_event(before->device);
        cudaError_t error = record(event, before);
        if (!error) error = wait(after, event);
        destroy_event(event);
        return error;
    });
}

// Graphs.

CONTROL int emulator_begin_capture(cudaStream_t stream, int mode) {
    return locked([&] { return begin_capture(find_stream(stream), static_cast<cudaStreamCaptureMode>(mode)); });
}

// Return whether a stream is captured.
CONTROL int emulator_is_capturing(cudaStream_t stream, int device) {
    return locked([&] {
        const cudaStream_t found = find_stream(stream, device);
        return found && found->capture;
    });
}

// Return an executable graph, or null.
CONTROL cudaGraphExec_t emulator_end_capture(cudaStream_t stream) {
    return locked([&]() -> cudaGraphExec_t {
        cudaGraph_t graph;
        if (end_capture(find_stream(stream), &graph)) return nullptr;
        const auto executable = new CUgraphExec_st{std::move(graph->works)};
        delete graph;
        return executable;
    });
}

CONTROL int emulator_graph_launch(cudaGraphExec_t executable, cudaStream_t stream, int device) {
    return locked([&] { return launch_graph(executable, find_stream(stream, device)); });
}

CONTROL void emulator_graph_destroy(cudaGraphExec_t executable) {
    delete executable;
}
