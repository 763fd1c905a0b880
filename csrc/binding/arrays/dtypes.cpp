#include "binding/arrays/dtypes.h"

namespace fusedstep {

std::atomic<PyObject*> native_dtypes[2][kTypes + 1];

namespace {

#define FUSEDSTEP_NAME(Storage, name, Word) name,
constexpr const char* kNames[] = {FUSEDSTEP_TYPES(FUSEDSTEP_NAME)};
#undef FUSEDSTEP_NAME

constexpr int kFirstForeign = 256;  // where the type numbers of libraries other than NumPy begin

// Look for the types of ml_dtypes, if somebody has imported it. A dtype is compared by its type number, since its name
// could be that of any dtype with as many bytes.
void find_foreign_dtypes() {
    auto name = py::str("ml_dtypes");
    auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(name.ptr()));
    if (!module) return;
    for (int type = 0; type < kTypes; ++type) {
        if (native_dtypes[false][type]) continue;
        try {
            auto found = py::dtype::from_args(module.attr(kNames[type]));
            if (found.num() < kFirstForeign || found.itemsize() != kItemSize[type]) continue;
            native_dtypes[false][type] = found.release().ptr();
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_Exception)) throw;
        }
    }
}

}  // namespace

void find_dtypes() {
    for (int type = 0; type < kTypes; ++type) {
        try {
            auto found = py::dtype(kNames[type]);
            if (found.num() < kFirstForeign) native_dtypes[false][type] = found.release().ptr();
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_TypeError)) throw;  // a dtype that NumPy lacks
        }
    }
    native_dtypes[true][kFloat32] = py::dtype("complex64").release().ptr();
    native_dtypes[true][kFloat64] = py::dtype("complex128").release().ptr();
}

Format format_of(PyObject* descr) {
    for (const bool pairs : {false, true})
        for (int type = 0; type < kTypes; ++type)
            if (descr == native_dtypes[pairs][type]) return {static_cast<Type>(type), pairs};
    auto dtype = py::reinterpret_borrow<py::dtype>(descr);
    if (dtype.byteorder() != '=') return {};
    if (dtype.num() >= kFirstForeign) find_foreign_dtypes();
    for (const bool pairs : {false, true})
        for (int type = 0; type < kTypes; ++type) {
            PyObject* native = native_dtypes[pairs][type];
            if (native && dtype.num() == py::reinterpret_borrow<py::dtype>(native).num())
                return {static_cast<Type>(type), pairs};
        }
    return {};
}

py::object dtype_of(Format format) {
    if (!native_dtype(format)) {
        try {
            py::module_::import("ml_dtypes");
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_ImportError)) throw;
            const std::string what = std::string(name_of(format.type)) +
                                     " parameters need the package ml_dtypes, which makes NumPy know them: "
                                     "python -m pip install ml_dtypes";
            py::raise_from(error, PyExc_RuntimeError, what.c_str());
            throw py::error_already_set();
        }
        find_foreign_dtypes();
    }
    return py::reinterpret_borrow<py::object>(native_dtype(format));
}

const char* name_of(Type type) {
    return kNames[type];
}

}  // namespace fusedstep
