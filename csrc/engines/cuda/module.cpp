// The module fusedstep._cuda: the engine for GPUs in a capsule, where plans find it, and how it was built.
#include <pybind11/pybind11.h>

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

}  // namespace

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
    m.doc() = "The engine of fusedstep for GPUs.";
    m.attr("engine") = py::capsule(&engine, kEngineCapsule);
    m.attr("compiler") = FUSEDSTEP_CUDA_COMPILER;
    m.attr("flags") = FUSEDSTEP_CUDA_FLAGS;
    m.attr("architectures") = py::str(FUSEDSTEP_CUDA_ARCHITECTURES).attr("split")();
    m.def("find_devices", &find_devices);
}

}  // namespace fusedstep::cuda
