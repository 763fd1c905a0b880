// The arguments `params` and `grads`: one array, or a sequence or mapping of arrays.
#pragma once

#include "binding/arrays/view.h"

namespace fusedstep {

enum class Kind { kArray, kSequence, kMapping };

struct Container {
    Kind kind;
    py::object items;  // an array, a list or tuple, or a dict
};

// What kind of argument an object is, and its items. Raises TypeError, where the object is called `role`.
Container open_container(py::object object, const char* role);

const char* kind_text(Kind kind);

// Whether two keys are equal, decided without running anybody's code: for str and int only.
inline bool plainly_equal(py::handle a, py::handle b) {
    if (a.is(b)) return true;
    if ((PyUnicode_CheckExact(a.ptr()) && PyUnicode_CheckExact(b.ptr())) ||
        (PyLong_CheckExact(a.ptr()) && PyLong_CheckExact(b.ptr())))
        return PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ) == 1;
    return false;
}

}  // namespace fusedstep
