#include "binding/arrays/exchange.h"

#include <pybind11/gil_safe_call_once.h>
#include <pybind11/numpy.h>

#include <mutex>

#include "binding/arrays/dlpack.h"
#include "binding/arrays/gpu.h"
#include "binding/arrays/layout.h"

namespace fusedstep {
namespace {

// What a type of arrays offers to C. Tensors of PyTorch may stand for other numbers than those in their memory, or be
// part of a graph of derivatives: the functions for C do not tell.
struct Library {
    PyTypeObject* type = nullptr;
    const dlpack::Exchange* exchange = nullptr;
    bool is_torch = false;
    PyObject *is_neg = nullptr, *is_conj = nullptr;  // methods of the type of tensors
};

const dlpack::Exchange* exchange_in(PyTypeObject* type) {
    auto capsule = py::reinterpret_steal<py::object>(
        PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__"));
    void* found = capsule ? PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api") : nullptr;
    PyErr_Clear();
    auto* header = static_cast<dlpack::ExchangeHeader*>(found);
    while (header && header->version.major > 1) header = header->older;
    auto* exchange = reinterpret_cast<const dlpack::Exchange*>(header);
    return exchange && header->version.major == 1 && exchange->tensor_from_object ? exchange : nullptr;
}

// Types that offer nothing are asked each time, and so are those beyond the table; those in it are kept alive.
Library library_of(py::handle array) {
    constexpr int kMost = 16;
    static Library known[kMost];
    static std::atomic<int> count{0};
    static std::mutex mutex;
    PyTypeObject* const type = Py_TYPE(array.ptr());
    const int n = count.load(std::memory_order_acquire);
    for (int i = 0; i < n; ++i)
        if (known[i].type == type) return known[i];
    const dlpack::Exchange* const exchange = exchange_in(type);
    if (!exchange) return {};
    const auto method = [&](const char* name) {
        return py::getattr(reinterpret_cast<PyObject*>(type), name, py::object()).release().ptr();
    };
    Library found{type, exchange, offers(array, "is_neg") && offers(array, "requires_grad")};
    if (found.is_torch) found.is_neg = method("is_neg"), found.is_conj = method("is_conj");
    const std::lock_guard lock(mutex);
    const int now = count.load(std::memory_order_relaxed);
    if (now == kMost) return found;
    Py_INCREF(type);
    known[now] = found;
    count.store(now + 1, std::memory_order_release);
    return found;
}

Format format_in(const dlpack::DataType& d) {
    if (d.lanes != 1) return {};
    if (d.code == dlpack::kFloat)
        return {d.bits == 32 ? kFloat32 : d.bits == 64 ? kFloat64 : d.bits == 16 ? kFloat16 : kTypes};
    if (d.code == dlpack::kComplex) return {d.bits == 64 ? kFloat32 : d.bits == 128 ? kFloat64 : kTypes, true};
    if (d.code == dlpack::kBfloat && d.bits == 16) return {kBFloat16};
    if (d.code == dlpack::kUInt && d.bits == 16) return {kUInt16};
    return {};
}

// The number of a GPU, kHost, or kAnywhere for memory of another kind.
int device_of(const dlpack::Tensor& t) {
    if (t.device.type == dlpack::kCPU || t.device.type == dlpack::kCUDAHost) return kHost;
    return t.device.type == dlpack::kCUDA ? t.device.id : kAnywhere;
}

char* address_of(const dlpack::Tensor& t) {
    return static_cast<char*>(t.data) + t.byte_offset;
}

// Whether elements of an array have an address. Tensors of PyTorch may have none, such as fake ones, those that wrap
// others, and those whose storage was freed.
bool has_memory(const dlpack::Tensor& t) {
    return t.data || std::find(t.shape, t.shape + t.ndim, 0) != t.shape + t.ndim;
}

// Ask an array for its memory. Returns false where it has none that can be shown, whatever the reason.
bool show(const Library& library, const py::object& array, dlpack::Tensor* t) {
    if (library.exchange->tensor_from_object(array.ptr(), t) == 0) return has_memory(*t);
    PyErr_Clear();
    return false;
}

View view_of(const dlpack::Tensor& t) {
    View view;
    view.data = address_of(t);
    view.format = format_in(t.dtype);
    const py::ssize_t itemsize = t.dtype.bits / 8;
    std::vector<py::ssize_t> shape(t.shape, t.shape + t.ndim), strides = row_strides(shape, itemsize);
    if (t.strides)
        for (int i = 0; i < t.ndim; ++i) strides[i] = t.strides[i] * itemsize;
    view.set_extents(shape, strides);
    return view;
}

// What is told by attributes alone.
bool is_plain(const Library& library, const py::object& array, bool is_complex, Asked asked) {
    if (!library.is_torch || asked == Asked::kNothing) return true;
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    py::object found;
    if (asked == Asked::kAll) {
        found = py::reinterpret_steal<py::object>(PyObject_GetAttr(array.ptr(), requires_grad));
        if (!found) throw py::error_already_set();
        if (found.ptr() != Py_False) return false;
    }
    for (PyObject* method : {library.is_neg, is_complex ? library.is_conj : nullptr}) {
        if (!method) continue;
        found = py::reinterpret_steal<py::object>(PyObject_CallOneArg(method, array.ptr()));
        if (!found) throw py::error_already_set();
        if (found.ptr() != Py_False) return false;
    }
    return true;
}

std::string text_of(const py::object& array, const Name& name) {
    return name.text() + " is of type " + type_name(array) + " and ";
}

// A dtype as NumPy calls it, or nearly so.
std::string text_of(const dlpack::DataType& d) {
    static constexpr const char* kCodes[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    const std::string code = d.code < std::size(kCodes) ? kCodes[d.code] : "code " + std::to_string(d.code) + " of ";
    return code + std::to_string(d.bits) + (d.lanes == 1 ? "" : "x" + std::to_string(d.lanes));
}

}  // namespace

bool has_exchange(py::handle array) {
    return library_of(array).exchange;
}

bool is_exchanged_on_gpu(const py::object& array) {
    dlpack::Tensor t;  // what is wrong with an array without memory is told when it is looked at
    return show(library_of(array), array, &t) && device_of(t) != kHost && device_of(t) != kAnywhere;
}

bool View::is_elsewhere(const py::object& array, char** moved) const {
    const Library library = library_of(array);
    if (!library.exchange) return false;
    dlpack::Tensor t;
    if (!show(library, array, &t)) return false;
    const size_t n = axes() - format.pairs;
    if (device_of(t) != device || format_in(t.dtype) != format || static_cast<size_t>(t.ndim) != n) return false;
    if (!t.strides && n > 0) return false;
    const py::ssize_t itemsize = t.dtype.bits / 8;
    for (size_t i = 0; i < n; ++i)
        if (t.shape[i] != shape()[i] || t.strides[i] * itemsize != strides()[i]) return false;
    char* const now = address_of(t);
    if (moved)
        *moved = now;
    else if (now != data)
        return false;
    return is_plain(library, array, format.pairs, asked);
}

void check_plain(const py::object& array, const Name& name, Asked asked) {
    if (is_plain(library_of(array), array, true, asked)) return;
    throw py::buffer_error(
        text_of(array, name) +
        (asked == Asked::kAll && py::cast<bool>(array.attr("requires_grad"))
             ? "does not export its memory, since it requires a gradient: .detach() does"
             : "stands for other numbers than those in its memory: .resolve_neg() and .resolve_conj() do not"));
}

bool counts_writes(py::handle array) {
    return Py_TYPE(array.ptr()) != ndarray_type && library_of(array).is_torch;
}

void count_writes(const std::vector<py::object>& tensors) {
    if (tensors.empty()) return;
    static py::gil_safe_call_once_and_store<py::object> storage;
    const py::object& increment =
        storage
            .call_once_and_store_result(
                [] { return py::object(py::module_::import("torch.autograd.graph").attr("increment_version")); })
            .get_stored();
    py::list counting;
    for (const py::object& tensor : tensors) counting.append(tensor);
    try {
        increment(counting);
    } catch (py::error_already_set& error) {  // tensors that were made for inference count nothing
        if (!error.matches(PyExc_RuntimeError)) throw;
        py::list others;
        for (const py::object& tensor : tensors)
            if (!py::cast<bool>(tensor.attr("is_inference")())) others.append(tensor);
        increment(others);
    }
}

uintptr_t address_of(const py::object& array) {
    dlpack::Tensor t;
    const Library library = library_of(array);
    return library.exchange && show(library, array, &t) ? reinterpret_cast<uintptr_t>(address_of(t)) : 0;
}

bool are_kept(const py::list& places, const py::array_t<uint64_t, py::array::c_style>& addresses) {
    const uint64_t* address = addresses.data();
    const uint64_t* const end = address + addresses.size();
    for (py::handle place : places) {
        const auto parts = py::cast<py::tuple>(place);
        const auto dict = py::cast<py::dict>(parts[0]);
        const auto tensors = py::cast<py::tuple>(parts[1]);
        if (dict.size() != tensors.size() || end - address < static_cast<py::ssize_t>(tensors.size())) return false;
        Py_ssize_t at = 0;
        PyObject *name = nullptr, *found = nullptr;
        for (size_t k = 0; k < tensors.size(); ++k, ++address) {
            const auto tensor = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(tensors.ptr(), k));
            if (!PyDict_Next(dict.ptr(), &at, &name, &found) || found != tensor.ptr()) return false;
            if (*address && address_of(tensor) != *address) return false;
        }
    }
    return address == end;
}

Sight see_by_exchange(const py::object& array, const Name& name) {
    const Library library = library_of(array);
    dlpack::Tensor t;
    if (!show(library, array, &t))
        throw py::type_error(text_of(array, name) + "shows no memory, expected a dense tensor with memory of its own");
    Sight sight{view_of(t), py::getattr(array, "dtype", py::none())};
    sight.view.device = device_of(t);
    if (sight.view.device == kAnywhere)
        throw py::type_error(text_of(array, name) + "in memory that is neither the host's nor a GPU's");
    sight.view.exchange = library.exchange;
    return sight;
}

Stream current_stream(const dlpack::Exchange& library, int device) {
    void* stream = nullptr;
    if (library.current_stream && library.current_stream(dlpack::kCUDA, device, &stream) != 0)
        throw py::error_already_set();
    return legacy_if_null(reinterpret_cast<Stream>(stream));
}

py::object capsule_of(const py::object& array) {
    const auto dlpack = array.attr("__dlpack__");
    try {
        using namespace py::literals;
        return dlpack("max_version"_a = py::make_tuple(1, 0), "copy"_a = false);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
    }
    return dlpack();  // of a library that does not know these arguments
}

Sight see_capsule(const py::object& capsule, const Name& name) {
    const char* kind = PyCapsule_GetName(capsule.ptr());
    const std::string_view text = kind ? kind : "";
    const dlpack::Tensor* t = nullptr;
    uint64_t flags = dlpack::kReadOnly;
    bool is_told = false;  // without a flag that says so, an array is not taken to be writable
    if (text == "dltensor") {
        t = &static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), kind))->tensor;
    } else if (text == "dltensor_versioned") {
        auto* managed = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), kind));
        if (managed->version.major == 1) t = &managed->tensor, flags = managed->flags, is_told = true;
    }
    if (!t) throw py::type_error(name.text() + " gives no capsule of DLPack 1, expected an array");
    if (device_of(*t) != kHost)
        throw py::type_error(name.text() + " is in memory that is neither the host's nor a GPU's");
    if (!has_memory(*t)) throw py::type_error(name.text() + " shows no memory, expected a dense array");
    return {view_of(*t), py::str(text_of(t->dtype)), !(flags & (dlpack::kReadOnly | dlpack::kIsCopied)), is_told};
}

}  // namespace fusedstep
