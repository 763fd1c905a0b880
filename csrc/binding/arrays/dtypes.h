// The dtypes of NumPy and ml_dtypes, as the types of step and storage.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>

#include "storage/types.h"

namespace fusedstep {

namespace py = pybind11;

// What the elements of an array are: numbers of a type, or complex numbers, which are pairs of such
// numbers.
struct Format {
    Type type = kTypes;
    bool pairs = false;

    bool operator==(const Format&) const = default;
};

// For each format the dtype object by which arrays are recognised: NumPy's own, or the one of ml_dtypes once an array
// of it has been seen. Another dtype object may be equal; recognition by address needs an object that never dies.
extern std::atomic<PyObject*> native_dtypes[2][kTypes + 1];
inline PyObject* native_dtype(Format format) {
    return native_dtypes[format.pairs][format.type];
}
void find_dtypes();

// The format that a dtype stands for; its type is kTypes where there is none.
Format format_of(PyObject* descr);
// The dtype that stands for a format. May import ml_dtypes.
py::object dtype_of(Format format);
// What the dtype of a type is called.
const char* name_of(Type type);

}  // namespace fusedstep
