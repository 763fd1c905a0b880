// The dtypes of NumPy and ml_dtypes, as the types of step and storage.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>

#include "storage/types.h"

namespace fusedstep {

namespace py = pybind11;

// For each type the dtype object by which arrays are recognised: NumPy's own, or the one of ml_dtypes once an array of
// it has been seen. Another dtype object may be equal; recognition by address needs an object that never dies.
extern std::atomic<PyObject*> native_dtypes[kTypes + 1];
void find_dtypes();

// The type that a dtype stands for, or kTypes.
Type type_of(PyObject* descr);
// The dtype that stands for a type. May import ml_dtypes.
py::object dtype_of(Type type);
// What the dtype of a type is called.
const char* name_of(Type type);

}  // namespace fusedstep
