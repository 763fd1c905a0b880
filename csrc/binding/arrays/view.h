// Checked views of the caller's arrays. Every check of a single array stands in this folder, and nothing is converted.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "binding/arrays/dtypes.h"
#include "step.h"

namespace fusedstep {

namespace dlpack {
struct Exchange;
}

// NumPy's type of arrays, known once the module has been loaded.
extern PyTypeObject* ndarray_type;

constexpr int kAligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
constexpr int kWriteable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

// How a message calls an array: role[key][state], without the parts that it has not.
struct Name {
    std::string_view role;
    py::handle key = {};
    std::string_view state = {};

    std::string text() const;
};

using Lengths = std::span<const py::ssize_t>;

// The shape of an array, and its strides in bytes. Few axes are kept without an allocation, near to what else is looked
// at when an array is recognised.
class Extents {
public:
    Extents() = default;
    explicit Extents(size_t axes) : axes_(static_cast<int>(axes)) {
        if (axes > kFew) more_ = std::make_unique<py::ssize_t[]>(2 * axes);
    }

    py::ssize_t& shape_at(size_t i) { return data()[i]; }
    py::ssize_t& stride_at(size_t i) { return data()[axes_ + i]; }

    size_t axes() const { return axes_; }
    Lengths shape() const { return {data(), axes()}; }
    Lengths strides() const { return {data() + axes_, axes()}; }

private:
    static constexpr size_t kFew = 4;
    const py::ssize_t* data() const { return more_ ? more_.get() : few_; }
    py::ssize_t* data() { return more_ ? more_.get() : few_; }

    int axes_ = 0;
    py::ssize_t few_[2 * kFew] = {};
    std::unique_ptr<py::ssize_t[]> more_;
};

// What a tensor of PyTorch is asked beside its memory: whether it stands for other numbers than those in it, being
// negated or conjugated, and whether it requires a gradient, which nobody but an optimizer of PyTorch may ignore.
enum class Asked : int8_t { kAll, kSigns, kNothing };

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
// Whether the object of a weak reference is still there.
inline bool is_alive(const py::object& reference) {
    return !py::reinterpret_steal<py::object>(PyObject_CallNoArgs(reference.ptr())).is_none();
}

// The memory of an array, and what must stay true for it to be the same memory in the next call. An array of complex
// numbers is seen as one of real numbers with a further axis, the last and fastest one, of length 2.
struct View {
    char* data = nullptr;
    Format format;
    bool in_rows = false;       // whether rows are contiguous
    Asked asked = Asked::kAll;  // when the array is recognised
    int device = kHost;
    const dlpack::Exchange* exchange = nullptr;  // the functions by which an array of another library shows its memory
    PyObject* native = nullptr;                  // the dtype by which an array of NumPy is recognised, which never dies
    py::object seen = {};  // weak reference to an array of CuPy, which keeps its memory as long as it lives
    int64_t size = 0;      // real numbers
    Extents extents;

    Type type() const { return format.type; }
    size_t axes() const { return extents.axes(); }
    Lengths shape() const { return extents.shape(); }
    Lengths strides() const { return extents.strides(); }
    int64_t bytes() const { return size * kItemSize[type()]; }

    // Be the view of an array with these axes; one of pairs gets its further axis.
    void set_extents(Lengths shape, Lengths strides);

    // Whether `array` is plainly the array of this view. False also where only a full look could tell.
    bool is_still(const py::object& array, int flags) const {
        if (seen) return refers_to(seen, array);
        if (Py_TYPE(array.ptr()) != ndarray_type) return data && is_elsewhere(array, nullptr);
        const auto& a = *py::detail::array_proxy(array.ptr());
        return a.data == data && is_like(a, flags);
    }
    // Whether `array` plainly differs from the array of this view in its address only, if at all: `moved` is where it
    // is.
    bool has_moved(const py::object& array, int flags, char** moved) const {
        if (seen) return *moved = data, refers_to(seen, array);
        if (Py_TYPE(array.ptr()) != ndarray_type) return data && is_elsewhere(array, moved);
        const auto& a = *py::detail::array_proxy(array.ptr());
        *moved = a.data;
        return is_like(a, flags);
    }

private:
    __attribute__((always_inline)) bool is_like(const py::detail::PyArray_Proxy& a, int flags) const {
        const size_t n = axes() - format.pairs;
        if (a.descr != native || (a.flags & flags) != flags || static_cast<size_t>(a.nd) != n) return false;
        const Lengths shape = this->shape(), strides = this->strides();
        for (size_t i = 0; i < n; ++i)
            if (a.dimensions[i] != shape[i] || a.strides[i] != strides[i]) return false;
        return true;
    }
    // The same for arrays of other libraries that show their memory to C.
    bool is_elsewhere(const py::object& array, char** moved) const;
};

// The types that states may have beside a parameter, and a parameter beside states.
TypeSet states_of(Type param);
TypeSet params_of(Type state);

// What an array is checked for.
enum class Use {
    kRead,         // a gradient that is only read: of any strides and any floating-point type
    kOverwritten,  // the same, but writable, and no two elements in one place
    kUpdated,      // a parameter or state: writable, and dense in some order of its axes
};

// What an array must match: the shape of another array, called `name`, and one of several types, of which messages
// recommend `format`.
struct Like {
    const View* view = nullptr;  // the other array, or null
    Format format;
    TypeSet types = kFloats;
    Name name;
    int device = kHost;     // or kAnywhere
    bool in_order = false;  // whether the axes of the two must have one order in memory
    Asked asked = Asked::kAll;
};
constexpr int kAnywhere = -2;
std::string device_text(int device);
// Raise TypeError where one of two arrays is in host memory and the other is not, ValueError where they are on two
// GPUs.
[[noreturn]] void refuse_device(const Name& name, int device, const Name& other, int expected);

// An array as it is found, before any check.
struct Sight {
    View view;
    py::object dtype;  // what messages say: a dtype, or its name
    bool writable = true;
    bool is_told = true;  // whether the array itself says if it may be written
};

// An array on a GPU that is not CuPy's. It must live until the work on it is done, unless its library frees memory in
// the order of the stream; and other work on it may be in the stream.
struct Foreign {
    py::object array;  // or nothing
    int device;
    uintptr_t stream;  // the stream of earlier work on the array, or 0
};
using Foreigners = std::vector<Foreign>;

// The qualified name of an object's type, such as numpy.float32.
std::string type_name(py::handle object);

// Whether the type of an object has an attribute. One of the object itself could raise, or lie.
bool offers(py::handle object, const char* attribute);

// Whether an object says that it is an array on a GPU.
bool is_on_gpu(py::handle object);

// What `look` takes: an object itself if it is a NumPy array, shows its memory to C or is on a GPU, else its NumPy view
// or its capsule of DLPack, or a refusal. A number becomes an array of NumPy where `numbers` are taken.
py::object as_array(py::object source, const Name& name, bool numbers = false);

// Check an array that `as_array` gave, and note a foreign one in `foreign`. Raises TypeError, ValueError or BufferError
// with the array's name first.
View look(const py::object& array, const Name& name, Use use, const Like& like = {}, Foreigners* foreign = nullptr);

// Whether `object` counts as one array rather than as a container of arrays.
bool is_array(py::handle object);

// Word number i of "m v", which is the name of state i.
std::string_view word(std::string_view words, size_t i);

}  // namespace fusedstep
