// The module fusedstep._cuda: the engine for GPUs in a capsule, where plans find it, how it was built, and memory on
// GPUs for states where CuPy is not installed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "binding/arrays/dlpack.h"
#include "engine.h"
#include "engines/cuda/runtime.h"

namespace fusedstep::cuda {

extern const Engine engine;

namespace {

namespace py = pybind11;

// The GPUs of this machine, by name, or why there are none.
py::tuple find_devices() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    py::list names;
    if (error != cudaSuccess) {
        cudaGetLastError();
        return py::make_tuple(names, std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error));
    }
    for (int device = 0; device < count; ++device) {
        cudaDeviceProp properties;
        check(cudaGetDeviceProperties(&properties, device), "asking about a GPU");
        names.append(std::string(properties.name) + ", sm_" + std::to_string(properties.major) +
                     std::to_string(properties.minor));
    }
    return py::make_tuple(names, py::none());
}

// The legacy default stream, in whose order memory is taken, set, copied and returned.
constexpr Stream kLegacy = 1;

// Zeros on a GPU.
class DeviceMemory {
public:
    DeviceMemory(int64_t bytes, int device) : device_(device) {
        const OnDevice here(device);
        memory_ = Memory(bytes, &kLegacy);
        if (bytes)
            check(cudaMemsetAsync(memory_.as<char>(), 0, bytes, stream_of(kLegacy)), "setting memory of the GPU");
    }
    ~DeviceMemory() {
        int before = 0;  // errors are ignored: at exit, there may be no CUDA any more
        const bool known = cudaGetDevice(&before) == cudaSuccess;
        cudaSetDevice(device_);
        memory_ = Memory();
        if (known) cudaSetDevice(before);
    }
    DeviceMemory(const DeviceMemory&) = delete;

    uintptr_t address() const { return reinterpret_cast<uintptr_t>(memory_.as<char>()); }

private:
    const int device_;
    Memory memory_;
};

// Copy bytes between memory of a GPU and a buffer of the host, after all that a stream has been asked to do.
void copy(void* to, const void* from, int64_t bytes, int device, Stream stream) {
    if (bytes == 0) return;
    const OnDevice here(device);
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)), "copying from or to the GPU");
    check(cudaStreamSynchronize(stream_of(stream)), "copying from or to the GPU");
}

void read(py::buffer to, uintptr_t from, int device, Stream stream) {
    const py::buffer_info host = to.request(true);
    copy(host.ptr, reinterpret_cast<const void*>(from), host.size * host.itemsize, device, stream);
}

void write(uintptr_t to, py::buffer from, int device, Stream stream) {
    const py::buffer_info host = from.request();
    copy(reinterpret_cast<void*>(to), host.ptr, host.size * host.itemsize, device, stream);
}

// What a capsule of DLPack refers to.
template <class Managed>
struct Exported {
    Managed managed{};
    py::object owner;
    std::vector<int64_t> shape, strides;
};

template <class Managed>
py::capsule export_as(const char* name, py::object owner, dlpack::Tensor tensor, std::vector<int64_t> shape,
                      std::vector<int64_t> strides) {
    auto* exported = new Exported<Managed>{{}, std::move(owner), std::move(shape), std::move(strides)};
    tensor.ndim = static_cast<int32_t>(exported->shape.size());
    tensor.shape = exported->shape.data();
    tensor.strides = exported->strides.data();
    Managed& managed = exported->managed;
    managed.context = exported;
    managed.deleter = [](Managed* self) {
        const py::gil_scoped_acquire gil;
        delete static_cast<Exported<Managed>*>(self->context);
    };
    if constexpr (requires { managed.version; }) managed.version = {1, 0};
    managed.tensor = tensor;
    // Whoever takes the tensor renames the capsule, and calls the deleter.
    PyObject* capsule = PyCapsule_New(&managed, name, [](PyObject* self) {
        const char* const now = PyCapsule_GetName(self);
        if (std::string_view(now).starts_with("used_")) return;
        auto* left = static_cast<Managed*>(PyCapsule_GetPointer(self, now));
        left->deleter(left);
    });
    if (!capsule) throw py::error_already_set();
    return py::reinterpret_steal<py::capsule>(capsule);
}

// A capsule of DLPack for an array on a GPU; the strides are counted in elements.
py::capsule to_dlpack(py::object owner, uintptr_t address, int device, std::pair<int, int> dtype,
                      std::vector<int64_t> shape, std::vector<int64_t> strides, bool versioned) {
    const auto [code, bits] = dtype;
    dlpack::Tensor tensor{};
    tensor.data = reinterpret_cast<void*>(address);
    tensor.device = {dlpack::kCUDA, device};
    tensor.dtype = {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
    if (versioned) return export_as<dlpack::ManagedVersioned>("dltensor_versioned", owner, tensor, shape, strides);
    return export_as<dlpack::Managed>("dltensor", owner, tensor, shape, strides);
}

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
    using py::arg;
    m.doc() = "The engine of fusedstep for GPUs.";
    m.attr("engine") = py::capsule(&engine, kEngineCapsule);
    m.attr("compiler") = FUSEDSTEP_CUDA_COMPILER;
    m.attr("flags") = FUSEDSTEP_CUDA_FLAGS;
    m.attr("architectures") = py::str(FUSEDSTEP_CUDA_ARCHITECTURES).attr("split")();
    m.def("find_devices", &find_devices);
    py::class_<DeviceMemory>(m, "DeviceMemory")
        .def(py::init<int64_t, int>(), arg("size"), arg("device"))
        .def_property_readonly("address", &DeviceMemory::address);
    m.def("read", &read, arg("to"), arg("address"), arg("device"), arg("stream"));
    m.def("write", &write, arg("address"), arg("source"), arg("device"), arg("stream"));
    m.def("order", engine.streams.order, arg("device"), arg("earlier"), arg("later"));
    m.def("device_of", [](uintptr_t address) { return engine.streams.device_of(reinterpret_cast<void*>(address)); });
    m.def("to_dlpack", &to_dlpack, arg("owner"), arg("address"), arg("device"), arg("dtype"), arg("shape"),
          arg("strides"), arg("versioned"));
}

}  // namespace fusedstep::cuda
