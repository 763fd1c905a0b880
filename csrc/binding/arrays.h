// Checked views of the caller's arrays: every refusal of a single array stands here, and nothing is ever converted.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "step.h"

namespace fusedstep {

namespace py = pybind11;

inline PyTypeObject* ndarray_type() {
    static PyTypeObject* const type = py::detail::npy_api::get().PyArray_Type_;
    return type;
}

// NumPy's own object for a type, or that of ml_dtypes, once it has been seen. An equal one may live elsewhere, but an
// address can be recognised only of one that never dies.
extern std::atomic<PyObject*> native_dtypes[kTypes + 1];
void find_dtypes();
// The type that a dtype of NumPy is, or kTypes; and the dtype that a type is, for which ml_dtypes may be imported.
Type type_of(PyObject* descr);
py::object dtype_of(Type type);

constexpr int kContiguous = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
constexpr int kReadable = kContiguous | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int kWritable = kReadable | kWriteable;

// How a message calls an array: role[key][state], with what there is of it.
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

// The memory of an array, and what must stay true for it to be the same memory in the next call. The shape is
// borrowed: from the array, or from whoever keeps the view.
struct View {
    char* data = nullptr;
    Type type = kTypes;
    int64_t size = 0;
    Shape shape;
    int device = kHost;
    std::shared_ptr<std::vector<py::ssize_t>> own_shape = nullptr;  // of an array on a GPU
    py::object seen = {};  // a weak reference to an array of CuPy, which stays where it is as long as it lives

    int64_t bytes() const { return size * kItemSize[type]; }
    // Whether `array` is plainly what this view saw; false also where a full look is needed to tell.
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

// A set of types.
using Among = unsigned;
template <class... T>
constexpr Among among(T... types) {
    return ((1u << types) | ...);
}
constexpr Among kHalves = among(kFloat16, kBFloat16);
constexpr Among kFloats = among(kFloat32, kFloat64) | kHalves;
// What gradients may be beside a parameter, states beside a parameter, and a parameter beside states.
Among grads_of(Type param);
Among states_of(Type param);
Among params_of(Type state);

// What an array must match: a shape, that of the array named, and one of some types; `type` is the one to recommend.
struct Like {
    Shape shape;
    Type type;
    Among types;
    Name name;
    int device = kHost;  // or kAnywhere
};
constexpr int kAnywhere = -2;
std::string device_text(int device);
// TypeError where one is in host memory and the other is not, ValueError where they are on two GPUs.
[[noreturn]] void refuse_device(const Name& name, int device, const Name& other, int expected);

// What there is to see of an array.
struct Sight {
    View view;
    py::object dtype;
    bool contiguous, writable;
};

// An array on a GPU that is not CuPy's: it must live until the work on it is done, and may come from another stream.
struct Foreign {
    py::object array;
    int device;
    uintptr_t stream;  // or 0
};
using Foreigners = std::vector<Foreign>;

// The qualified name of an object's type, such as numpy.float32.
std::string type_name(py::handle object);

// Whether what is no NumPy array says that it is on a GPU.
bool is_on_gpu(py::handle object);

// `source` itself if it is a NumPy array or on a GPU, else a NumPy view of it, where it offers one.
py::object as_array(py::object source, const Name& name);

// Look at such an array from all sides, and note a foreign one; without `like`, it may be of any type of float. Raises
// TypeError or ValueError, the array's name first.
View look(const py::object& array, const Name& name, bool writable, const Like* like = nullptr,
          Foreigners* foreign = nullptr);

// Whether `object` counts as one array rather than as a container of arrays.
bool is_array(py::handle object);

// A stretch of memory in use by an array of the call.
struct Span {
    const char* begin;
    const char* end;
    size_t id;
};
void add_span(std::vector<Span>& spans, const View& view, size_t id);
void sort(std::vector<Span>& spans);
// Two overlapping spans among two sorted lists, or {nullptr, nullptr}.
std::pair<const Span*, const Span*> find_overlap(const std::vector<Span>& a, const std::vector<Span>& b);
[[noreturn]] void refuse_overlap(const Name& a, const Name& b);

// The word number `i` of "m v": the name of a state.
std::string_view word(std::string_view words, size_t i);

}  // namespace fusedstep
