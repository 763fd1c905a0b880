#include <algorithm>

#include "binding/arrays/exchange.h"
#include "binding/arrays/gpu.h"
#include "binding/arrays/layout.h"
#include "binding/arrays/view.h"

namespace fusedstep {

PyTypeObject* ndarray_type = nullptr;

namespace {

// A shape as Python writes it. The last axis of complex numbers seen as pairs is none of the array's.
std::string shape_text(const View& view) {
    py::tuple tuple(view.axes() - view.format.pairs);
    for (size_t i = 0; i < tuple.size(); ++i) tuple[i] = view.shape()[i];
    return py::repr(tuple);
}

// Whether an array is masked, told by its type alone: isinstance would run code of the array's class amid the checks.
bool is_masked(const py::object& array) {
    if (Py_TYPE(array.ptr()) == ndarray_type) return false;
    auto name = py::str("numpy.ma");
    auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(name.ptr()));
    if (!module) return false;  // not imported, so there is no masked array
    py::object masked = module.attr("MaskedArray");
    return PyType_Check(masked.ptr()) &&
           PyType_IsSubtype(Py_TYPE(array.ptr()), reinterpret_cast<PyTypeObject*>(masked.ptr()));
}

bool is_numpy(const py::object& array) {
    return PyObject_TypeCheck(array.ptr(), ndarray_type);
}

// A number of Python or NumPy.
bool is_number(py::handle object) {
    static const py::handle generic = py::object(py::module_::import("numpy").attr("generic")).release();
    return PyFloat_Check(object.ptr()) || PyComplex_Check(object.ptr()) ||
           PyObject_TypeCheck(object.ptr(), reinterpret_cast<PyTypeObject*>(generic.ptr()));
}

}  // namespace

TypeSet states_of(Type param) {
    return set_of(param) | (contains(kNarrow, param) ? set_of(kFloat32) : 0);
}

TypeSet params_of(Type state) {
    if (state == kUInt16) return set_of(kBFloat16);  // uint16 is the remainder of a bfloat16 parameter
    return set_of(state) | (state == kFloat32 ? kNarrow : 0);
}

std::string type_name(py::handle object) {
    PyTypeObject* type = Py_TYPE(object.ptr());
    py::object module = py::getattr(py::handle(reinterpret_cast<PyObject*>(type)), "__module__", py::none());
    std::string name = py::str(py::handle(reinterpret_cast<PyObject*>(type)).attr("__qualname__"));
    if (!py::isinstance<py::str>(module) || py::str(module).equal(py::str("builtins"))) return name;
    return std::string(py::str(module)) + "." + name;
}

std::string Name::text() const {
    std::string text(role);
    if (key) {
        try {
            text += "[" + std::string(py::repr(key)) + "]";
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_Exception)) throw;
            text += "[" + type_name(key) + "]";  // the key's repr failed
        }
    }
    if (!state.empty()) text += "['" + std::string(state) + "']";
    return text;
}

bool offers(py::handle object, const char* attribute) {
    return PyObject_HasAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())), attribute) == 1;
}

bool is_array(py::handle object) {
    return PyObject_TypeCheck(object.ptr(), ndarray_type) || has_exchange(object) || offers(object, "__dlpack__") ||
           offers(object, "__array_interface__") || offers(object, "__cuda_array_interface__") || is_number(object);
}

bool is_on_gpu(py::handle object) {
    if (is_cupy(object)) return true;
    if (PyObject_TypeCheck(object.ptr(), ndarray_type)) return false;
    if (has_exchange(object)) return is_exchanged_on_gpu(py::reinterpret_borrow<py::object>(object));
    return offers(object, "__cuda_array_interface__");
}

namespace {

// CuPy's view of an array on a GPU that offers nothing but DLPack. Only libraries of arrays can keep a pointer of
// DLPack alive.
py::object view_with_cupy(const py::object& source, const Name& name) {
    const std::string what = name.text() + " is of type " + type_name(source) + " and on a GPU, ";
    try {
        return py::module_::import("cupy").attr("from_dlpack")(source);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
        if (error.matches(PyExc_ImportError))
            throw std::runtime_error(what + "where it takes CuPy to view it: install cupy-cuda13x or cupy-cuda12x");
        throw py::type_error(what + "which CuPy cannot view: " + error.what());
    }
}

// NumPy's view of an array that describes its memory by __array_interface__.
py::object view_with_numpy(const py::object& source, const Name& name) {
    try {
        const py::tuple data = source.attr("__array_interface__")["data"];
        const auto address = py::cast<uintptr_t>(data[0]);
        py::object view = py::module_::import("numpy").attr("asarray")(source);
        if (is_numpy(view) && reinterpret_cast<uintptr_t>(py::detail::array_proxy(view.ptr())->data) == address)
            return view;
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
    } catch (py::cast_error&) {
    }
    throw py::type_error(name.text() + " is of type " + type_name(source) +
                         " whose __array_interface__ shows no memory that NumPy can view");
}

// What an array of another library shows by DLPack.
py::object view_with_dlpack(const py::object& source, const Name& name) {
    constexpr int kCPU = 1, kCUDA = 2, kCUDAHost = 3;
    try {
        const int device = py::cast<int>(py::tuple(source.attr("__dlpack_device__")())[0]);
        if (device == kCPU || device == kCUDAHost) return capsule_of(source);
        if (offers(source, "__cuda_array_interface__")) return source;
        if (device == kCUDA) return view_with_cupy(source, name);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
        const std::string what = name.text() + " is of type " + type_name(source) +
                                 " and does not export its memory; a tensor that requires a gradient does as .detach()";
        py::raise_from(error, error.matches(PyExc_BufferError) ? PyExc_BufferError : PyExc_TypeError, what.c_str());
        throw py::error_already_set();
    } catch (py::cast_error&) {
        throw py::type_error(name.text() + " is of type " + type_name(source) +
                             " whose __dlpack_device__ gives no pair of integers");
    }
    throw py::type_error(name.text() + " is of type " + type_name(source) +
                         " and neither in host memory nor on a GPU of CUDA");
}

}  // namespace

py::object as_array(py::object source, const Name& name, bool numbers) {
    if (is_numpy(source) || is_cupy(source)) return source;
    if (has_exchange(source)) return source;
    if (numbers && is_number(source)) return py::module_::import("numpy").attr("asarray")(source);
    if (offers(source, "__array_interface__") && !is_number(source)) return view_with_numpy(source, name);
    if (offers(source, "__dlpack__") && offers(source, "__dlpack_device__")) return view_with_dlpack(source, name);
    if (offers(source, "__cuda_array_interface__")) return source;
    throw py::type_error(name.text() + " is of type " + type_name(source) + ", expected an array");
}

namespace {

Sight see(const py::object& array, const Name& name) {
    if (is_masked(array))
        throw py::type_error(name.text() + " is a masked array, expected a plain one (its .data, if that is meant)");
    const auto& a = *py::detail::array_proxy(array.ptr());
    View view;
    view.format = format_of(a.descr);  // first: an import may run code, and nothing is borrowed yet
    view.data = a.data;
    view.native = native_dtype(view.format);
    const auto axes = static_cast<size_t>(a.nd);
    view.set_extents({a.dimensions, axes}, {a.strides, axes});
    return {std::move(view), py::reinterpret_borrow<py::object>(a.descr), (a.flags & kWriteable) != 0};
}

Sight see_any(const py::object& array, const Name& name, Asked asked, Foreigners* foreign) {
    if (is_numpy(array)) return see(array, name);
    if (PyCapsule_CheckExact(array.ptr())) return see_capsule(array, name);
    if (has_exchange(array)) {
        check_plain(array, name, asked);
        if (!is_exchanged_on_gpu(array)) return see_by_exchange(array, name);
    }
    return see_on_gpu(array, name, foreign);
}

std::string dtype_text(Format format) {
    if (format.pairs) return format.type == kFloat32 ? "complex64" : "complex128";
    return name_of(format.type);
}

void check_type(const Sight& sight, const Name& name, const Like& like) {
    const Format found = sight.view.format;
    const bool fits = contains(like.types, found.type) && (!like.view || found.pairs == like.view->format.pairs);
    if (fits) return;
    const std::string dtype = py::str(sight.dtype);
    if (contains(like.types, found.type))
        throw py::type_error(name.text() + " is " + dtype + ", expected " +
                             (like.view->format.pairs ? "complex" : "real") + " numbers like " + like.name.text());
    const bool is_swapped = dtype.starts_with('>') || dtype.starts_with('<');
    const bool is_named = like.format.type != kTypes;
    const std::string expected = (is_named ? dtype_text(like.format) : "float32, float64, float16 or bfloat16") +
                                 (is_swapped ? " in native byte order"
                                  : is_named ? ""
                                             : ", complex64 or complex128") +
                                 (is_named ? " like " + like.name.text() : "");
    throw py::type_error(name.text() + " is " + dtype + ", expected " + expected);
}

void check_memory(const Sight& sight, const Name& name, Use use, const Like& like) {
    const View& view = sight.view;
    const auto itemsize = static_cast<uintptr_t>(kItemSize[view.type()]);
    const bool is_aligned = view.size == 0 || reinterpret_cast<uintptr_t>(view.data) % itemsize == 0;
    if (!is_aligned && (use == Use::kUpdated || view.device != kHost))
        throw py::value_error(name.text() + " is unaligned, expected an address that is a multiple of " +
                              std::to_string(itemsize) + " bytes, as a copy has it");
    if (use == Use::kUpdated && !is_dense(view))
        throw py::value_error(name.text() +
                              " has gaps or negative strides, expected dense memory in some order of its axes: step "
                              "the whole array with a gradient that is 0 elsewhere, or a contiguous copy");
    if (like.in_order && !same_order(*like.view, view))
        throw py::value_error(name.text() + " lies in another order of its axes than " + like.name.text() +
                              ", expected the same order, as from np.empty_like or np.zeros_like");
    if (use == Use::kOverwritten && overlaps_itself(view))
        throw py::value_error(name.text() + " has elements in one place, as from broadcasting, and cannot be zeroed: " +
                              "expected a place for each, or zero_grad=False");
    if (use != Use::kRead && !sight.writable)
        throw py::value_error(name.text() +
                              (sight.is_told ? " is read-only, expected a writable array"
                                             : " does not tell by its DLPack that it may be written, expected a "
                                               "writable array, such as NumPy's view of it if that is one, or a copy") +
                              (use == Use::kOverwritten ? ", or zero_grad=False" : ""));
}

}  // namespace

std::string device_text(int device) {
    return device == kHost ? "in host memory" : "on GPU " + std::to_string(device);
}

void refuse_device(const Name& name, int device, const Name& other, int expected) {
    const std::string what =
        name.text() + " is " + device_text(device) + ", expected it " + device_text(expected) + " like " + other.text();
    if (device == kHost || expected == kHost) throw py::type_error(what);
    throw py::value_error(what);
}

View look(const py::object& array, const Name& name, Use use, const Like& like, Foreigners* foreign) {
    Sight sight = see_any(array, name, like.asked, foreign);
    const View& view = sight.view;
    if (like.view && view.device != like.device && like.device != kAnywhere)
        refuse_device(name, view.device, like.name, like.device);
    check_type(sight, name, like);
    if (like.view && !std::ranges::equal(view.shape(), like.view->shape()))
        throw py::value_error(name.text() + " has shape " + shape_text(view) + ", expected " + shape_text(*like.view) +
                              " like " + like.name.text());
    check_memory(sight, name, use, like);
    return std::move(sight.view);
}

std::string_view word(std::string_view words, size_t i) {
    while (i--) words.remove_prefix(words.find(' ') + 1);
    return words.substr(0, words.find(' '));
}

}  // namespace fusedstep
