#include <algorithm>

#include "binding/arrays/gpu.h"
#include "binding/arrays/view.h"

namespace fusedstep {

namespace {

std::string shape_text(Shape shape) {
    py::tuple tuple(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) tuple[i] = shape[i];
    return py::repr(tuple);
}

// Whether the type of an object has a method. An attribute of the object itself could raise, or lie.
bool offers(py::handle object, const char* method) {
    return PyObject_HasAttrString(reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())), method) == 1;
}

// Whether an array is masked, told by its type alone: isinstance would run code of the array's class amid the checks.
bool is_masked(const py::object& array) {
    if (Py_TYPE(array.ptr()) == ndarray_type()) return false;
    auto name = py::str("numpy.ma");
    auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(name.ptr()));
    if (!module) return false;  // not imported, so there is no masked array
    py::object masked = module.attr("MaskedArray");
    return PyType_Check(masked.ptr()) &&
           PyType_IsSubtype(Py_TYPE(array.ptr()), reinterpret_cast<PyTypeObject*>(masked.ptr()));
}

}  // namespace

TypeSet grads_of(Type param) {
    if (param == kFloat32) return kNarrow | set_of(param);
    return states_of(param);
}

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

bool is_array(py::handle object) {
    return PyObject_TypeCheck(object.ptr(), ndarray_type()) || offers(object, "__dlpack__") ||
           offers(object, "__cuda_array_interface__");
}

bool is_on_gpu(py::handle object) {
    return is_cupy(object) ||
           (!PyObject_TypeCheck(object.ptr(), ndarray_type()) && offers(object, "__cuda_array_interface__"));
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

}  // namespace

py::object as_array(py::object source, const Name& name) {
    if (PyObject_TypeCheck(source.ptr(), ndarray_type()) || is_cupy(source)) return source;
    constexpr int kCPU = 1, kCUDA = 2;
    const bool has_interface = offers(source, "__cuda_array_interface__");
    if (offers(source, "__dlpack__") && offers(source, "__dlpack_device__")) {
        static const py::handle from_dlpack = py::object(py::module_::import("numpy").attr("from_dlpack")).release();
        try {
            int device = py::cast<int>(py::tuple(source.attr("__dlpack_device__")())[0]);
            if (device == kCPU) {
                py::object array = from_dlpack(source);
                if (PyObject_TypeCheck(array.ptr(), ndarray_type())) return array;
                throw py::type_error(name.text() + " gives a " + type_name(array) + ", expected a NumPy array");
            }
            if (device == kCUDA && !has_interface) return view_with_cupy(source, name);
        } catch (py::error_already_set& error) {
            std::string what = name.text() + " is of type " + type_name(source);
            if (error.matches(PyExc_BufferError)) {
                what += " and does not export its memory; a torch tensor that requires grad does as .detach()";
                py::raise_from(error, PyExc_BufferError, what.c_str());
            } else if (error.matches(PyExc_RuntimeError) || error.matches(PyExc_ValueError) ||
                       error.matches(PyExc_TypeError)) {
                what +=
                    ", which NumPy cannot view, expected float32, float64 or float16 in host memory, or bfloat16 of "
                    "ml_dtypes";
                py::raise_from(error, PyExc_TypeError, what.c_str());
            } else {
                throw;
            }
            throw py::error_already_set();
        } catch (py::cast_error&) {
            throw py::type_error(name.text() + " is of type " + type_name(source) +
                                 " whose __dlpack_device__ gives no pair of integers");
        }
    }
    if (has_interface) return source;
    throw py::type_error(name.text() + " is of type " + type_name(source) + ", expected an array");
}

namespace {

Sight see(const py::object& array, const Name& name) {
    if (is_masked(array))
        throw py::type_error(name.text() + " is a masked array, expected a plain one (its .data, if that is meant)");
    const auto& a = *py::detail::array_proxy(array.ptr());
    const Type type = type_of(a.descr);  // first: an import may run code, and nothing is borrowed yet
    View view{a.data, type, 1, {a.dimensions, static_cast<size_t>(a.nd)}};
    for (py::ssize_t n : view.shape) view.size *= n;
    return {view, py::reinterpret_borrow<py::dtype>(a.descr), (a.flags & kContiguous) != 0,
            (a.flags & kWriteable) != 0};
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

View look(const py::object& array, const Name& name, bool writable, const Like* like, Foreigners* foreign) {
    const bool on_host = PyObject_TypeCheck(array.ptr(), ndarray_type());
    const Sight sight = on_host ? see(array, name) : see_on_gpu(array, name, foreign);
    const View& view = sight.view;
    if (like && view.device != like->device && like->device != kAnywhere)
        refuse_device(name, view.device, like->name, like->device);
    if (!contains(like ? like->types : kFloats, view.type)) {
        std::string like_what = like ? " like " + like->name.text() : "";
        std::string expected = like ? name_of(like->type) : "float32, float64, float16 or bfloat16";
        const char order = on_host ? py::reinterpret_borrow<py::dtype>(sight.dtype).byteorder() : '=';
        const bool swapped = order == '>' || order == '<';
        throw py::type_error(name.text() + " is " + std::string(py::str(sight.dtype)) + ", expected " + expected +
                             (swapped ? " in native byte order" : "") + like_what);
    }
    if (like && !std::ranges::equal(view.shape, like->shape))
        throw py::value_error(name.text() + " has shape " + shape_text(view.shape) + ", expected " +
                              shape_text(like->shape) + " like " + like->name.text());
    if (!sight.contiguous)
        throw py::value_error(name.text() + " is not C-contiguous, expected contiguous memory in row-major order");
    if (view.size && reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(kItemSize[view.type]))
        throw py::value_error(name.text() + " is unaligned, expected an address that is a multiple of " +
                              std::to_string(kItemSize[view.type]) + " bytes");
    if (writable && !sight.writable) throw py::value_error(name.text() + " is read-only, expected a writable array");
    return view;
}

std::string_view word(std::string_view words, size_t i) {
    while (i--) words.remove_prefix(words.find(' ') + 1);
    return words.substr(0, words.find(' '));
}

}  // namespace fusedstep
