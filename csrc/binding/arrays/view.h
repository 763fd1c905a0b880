// Checked views of the caller's arrays. Every check of a single array stands in this folder, and nothing is converted.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "binding/arrays/dtypes.h"
#include "step.h"

namespace fusedstep {

inline PyTypeObject* ndarray_type() {
    static PyTypeObject* const type = py::detail::npy_api::get().PyArray_Type_;
    return type;
}

constexpr int kContiguous = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
constexpr int kReadable = kContiguous | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int kWritable = kReadable | kWriteable;

// How a message calls an array: role[key][state], without the parts that it has not.
struct Name {
    std::string_view role;
    py::handle key = {};
    std::string_view state = {};

    std::string text() const;
};

using Shape = std::span<const py::ssize_t>;

// Whether a weak reference is to an object.
inline bool refers_to(const py::object& reference, const py::object& object) {
#if PY_VERSION_HEX >= 0x030D0000
    PyObject* found = nullptr;
    PyWeakref_GetRef(reference.ptr(), &found);
    return py::reinterpret_steal<py::object>(found).is(object);
#else
    return PyWeakref_GET_OBJECT(reference.ptr()) == object.ptr();
#endif
}

// The memory of an array, and what must stay true for it to be the same memory in the next call. The shape is borrowed
// from the array, or from the owner of the view.
struct View {
    char* data = nullptr;
    Type type = kTypes;
    int64_t size = 0;
    Shape shape;
    int device = kHost;
    std::shared_ptr<std::vector<py::ssize_t>> own_shape = nullptr;  // memory for the shape of an array on a GPU
    py::object seen = {};  // weak reference to an array of CuPy, which keeps its memory as long as it lives

    int64_t bytes() const { return size * kItemSize[type]; }
    // Whether `array` is plainly the array of this view. False also where only a full look could tell.
    bool is_still(const py::object& array, int flags) const {
        if (seen) return refers_to(seen, array);
        if (Py_TYPE(array.ptr()) != ndarray_type()) return false;
        const auto& a = *py::detail::array_proxy(array.ptr());
        if (a.data != data || a.descr != native_dtypes[type] || (a.flags & flags) != flags) return false;
        if (static_cast<size_t>(a.nd) != shape.size()) return false;
        for (size_t i = 0; i < shape.size(); ++i)
            if (a.dimensions[i] != shape[i]) return false;
        return true;
    }
};

// The types that a gradient may have beside a parameter, states beside a parameter, and a parameter beside states.
TypeSet grads_of(Type param);
TypeSet states_of(Type param);
TypeSet params_of(Type state);

// What an array must match: the shape of another array, called `name`, and one of several types, of which messages
// recommend `type`.
struct Like {
    Shape shape;
    Type type;
    TypeSet types;
    Name name;
    int device = kHost;  // or kAnywhere
};
constexpr int kAnywhere = -2;
std::string device_text(int device);
// Raise TypeError where one of two arrays is in host memory and the other is not, ValueError where they are on two
// GPUs.
[[noreturn]] void refuse_device(const Name& name, int device, const Name& other, int expected);

// An array as it is found, before any check.
struct Sight {
    View view;
    py::object dtype;
    bool contiguous, writable;
};

// An array on a GPU that is not CuPy's. It must live until the work on it is done, and other work on it may be in a
// stream.
struct Foreign {
    py::object array;
    int device;
    uintptr_t stream;  // the stream of earlier work on the array, or 0
};
using Foreigners = std::vector<Foreign>;

// The qualified name of an object's type, such as numpy.float32.
std::string type_name(py::handle object);

// Whether an object says that it is an array on a GPU.
bool is_on_gpu(py::handle object);

// An object itself if it is a NumPy array or on a GPU, else its NumPy view, or a refusal.
py::object as_array(py::object source, const Name& name);

// Check an array that `as_array` gave, and note a foreign one in `foreign`. Without `like`, the array
// may have any floating-point type. Raises TypeError or ValueError with the array's name first.
View look(const py::object& array, const Name& name, bool writable, const Like* like = nullptr,
          Foreigners* foreign = nullptr);

// Whether `object` counts as one array rather than as a container of arrays.
bool is_array(py::handle object);

// Word number i of "m v", which is the name of state i.
std::string_view word(std::string_view words, size_t i);

}  // namespace fusedstep
