#include "binding/arrays/gpu.h"

#include <algorithm>
#include <deque>
#include <mutex>

#include "binding/arrays/exchange.h"
#include "binding/arrays/layout.h"

namespace fusedstep {
namespace {

constexpr int kLegacyStream = 1;

// A module that somebody has imported, or nothing. None stands for a module that must not be imported.
py::object loaded(const char* name) {
    auto text = py::str(name);
    auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(text.ptr()));
    return module && !module.is_none() ? module : py::object();
}

PyTypeObject* cupy_type() {
    static std::atomic<PyTypeObject*> found{nullptr};
    if (PyTypeObject* type = found) return type;
    py::object module = loaded("cupy");
    py::object type = module ? py::getattr(module, "ndarray", py::none()) : py::none();
    if (!PyType_Check(type.ptr())) return nullptr;
    found = reinterpret_cast<PyTypeObject*>(type.release().ptr());
    return found;
}

// The format of an array with a __cuda_array_interface__, by its dtype or else by the typestr `text`. A typestr cannot
// express bfloat16: it says void, and the name of the array's dtype tells the type.
Format format_in(const std::string& text, const py::object& dtype) {
    if (py::isinstance<py::dtype>(dtype)) return format_of(dtype.ptr());
    if (text.starts_with("<V")) {
        const std::string name = py::str(dtype);
        for (int type = 0; type < kTypes; ++type)
            if (text == "<V" + std::to_string(kItemSize[type]) && name.ends_with(name_of(static_cast<Type>(type))))
                return {static_cast<Type>(type)};
        return {};
    }
    try {
        return format_of(py::dtype(text).ptr());
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
        return {};
    }
}

// The device of an array without elements, which has no address.
int device_of_empty(const py::object& array) {
    for (const char* name : {"id", "index"}) {
        py::object device = py::getattr(array, "device", py::none());
        py::object number = py::getattr(device, name, py::none());
        if (py::isinstance<py::int_>(number)) return py::cast<int>(number);
    }
    return 0;
}

}  // namespace

bool is_cupy(py::handle array) {
    PyTypeObject* type = cupy_type();
    return type && Py_TYPE(array.ptr()) == type;
}

const Engine& gpu_engine(const Name& name) {
    static std::atomic<const Engine*> found{nullptr};
    static std::atomic<PyObject*> its_module{nullptr};
    constexpr const char* kModule = "fusedstep._cuda";
    if (PyObject* module = its_module; module && loaded(kModule).ptr() == module) return *found;
    try {
        py::object module = py::module_::import(kModule);
        auto [devices, why] = py::cast<std::pair<py::list, py::object>>(module.attr("find_devices")());
        if (devices.empty())
            throw std::runtime_error(name.text() + " is on a GPU, but no GPU can be used here: " +
                                     (why.is_none() ? "CUDA finds none" : std::string(py::str(why))) +
                                     "; `nvidia-smi` tells what the driver sees");
        const Engine* engine = py::reinterpret_borrow<py::capsule>(module.attr("engine"));
        if (engine->layout != host_engine().layout)
            throw std::runtime_error("fusedstep._cuda and fusedstep._cpu are of two builds: install fusedstep again");
        found = engine;
        its_module = module.release().ptr();
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_ImportError)) throw;
        const std::string what = name.text() +
                                 " is on a GPU, expected host memory: this build of fusedstep has no CUDA engine; "
                                 "where nvcc is found, it is built, and FUSEDSTEP_CUDA=ON says why it is not";
        py::raise_from(error, PyExc_RuntimeError, what.c_str());
        throw py::error_already_set();
    }
    return *found;
}

Sight see_on_gpu(const py::object& array, const Name& name, Foreigners* foreign) {
    if (has_exchange(array)) {
        Sight sight = see_by_exchange(array, name);
        gpu_engine(name);
        note_stream(*sight.view.exchange, sight.view.device, foreign);
        return sight;
    }
    py::dict interface;
    try {
        interface = py::dict(array.attr("__cuda_array_interface__"));
    } catch (py::error_already_set& error) {
        const std::string what = name.text() + " is of type " + type_name(array) +
                                 " and does not export its memory; a torch tensor that requires grad does as .detach()";
        if (!error.matches(PyExc_Exception)) throw;
        py::raise_from(error, error.matches(PyExc_RuntimeError) ? PyExc_BufferError : PyExc_TypeError, what.c_str());
        throw py::error_already_set();
    }
    Sight sight;
    View& view = sight.view;
    Stream stream = 0;
    try {
        py::tuple data = interface["data"];
        view.data = reinterpret_cast<char*>(py::cast<uintptr_t>(data[0]));
        sight.writable = !py::cast<bool>(data[1]);
        sight.dtype = py::getattr(array, "dtype", py::none());
        const std::string text = py::cast<std::string>(interface["typestr"]);
        view.format = format_in(text, sight.dtype);
        if (sight.dtype.is_none()) sight.dtype = py::str(text);
        std::vector<py::ssize_t> shape;
        int64_t bytes = 2 * kItemSize[kFloat64];  // of an array of the largest elements
        for (py::handle n : py::tuple(interface["shape"])) {
            shape.push_back(py::cast<py::ssize_t>(n));
            if (shape.back() < 0 || __builtin_mul_overflow(bytes, shape.back(), &bytes)) throw py::cast_error();
        }
        const py::ssize_t itemsize = kItemSize[view.type()] * (view.format.pairs ? 2 : 1);
        std::vector<py::ssize_t> strides = row_strides(shape, itemsize);
        if (py::object given = interface.attr("get")("strides"); !given.is_none()) {
            py::tuple steps(given);
            if (steps.size() != strides.size()) throw py::cast_error();
            for (size_t i = 0; i < strides.size(); ++i) strides[i] = py::cast<py::ssize_t>(steps[i]);
        }
        view.set_extents(shape, strides);
        py::object mask = interface.attr("get")("mask");
        if (!mask.is_none()) throw py::type_error(name.text() + " has a mask, expected a plain array");
        py::object theirs = interface.attr("get")("stream");
        if (!theirs.is_none()) stream = legacy_if_null(py::cast<Stream>(theirs));
    } catch (py::cast_error&) {
        throw py::type_error(name.text() + " is of type " + type_name(array) +
                             " whose __cuda_array_interface__ is not of version 2 or 3");
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
        const std::string what = name.text() + " is of type " + type_name(array) +
                                 " whose __cuda_array_interface__ is not of version 2 or 3";
        py::raise_from(error, PyExc_TypeError, what.c_str());
        throw py::error_already_set();
    }
    const Engine& engine = gpu_engine(name);
    view.device = view.size ? engine.streams.device_of(view.data) : device_of_empty(array);
    if (view.device == kHost)
        throw py::value_error(name.text() + " is said to be on a GPU, but its address is in host memory");
    if (is_cupy(array))
        view.seen = py::weakref(array);
    else
        foreign->push_back({array, view.device, stream});
    return sight;
}

Number number_of(py::handle object, const Name& name, int* device, Foreigners* foreign) {
    if (PyFloat_CheckExact(object.ptr()) || !is_on_gpu(object)) return {py::cast<double>(object), nullptr};
    const View view = see_on_gpu(py::reinterpret_borrow<py::object>(object), name, foreign).view;
    if ((view.format != Format{kFloat64} && view.format != Format{kFloat32}) || view.size != 1)
        throw py::type_error(name.text() + " is an array on a GPU, expected float64 or float32, and one element");
    const auto itemsize = static_cast<uintptr_t>(kItemSize[view.type()]);
    if (reinterpret_cast<uintptr_t>(view.data) % itemsize)
        throw py::value_error(name.text() + " is unaligned, expected an address that is a multiple of " +
                              std::to_string(itemsize) + " bytes");
    if (*device != kHost && *device != view.device)
        throw py::value_error(name.text() + " is " + device_text(view.device) + ", and another number " +
                              device_text(*device) + ", expected all on one GPU");
    *device = view.device;
    // As a value, 1: an option that reads its number from a GPU counts as switched on.
    return {1, view.data, view.type()};
}

Stream legacy_if_null(Stream stream) {
    return stream ? stream : kLegacyStream;
}

Stream current_stream(int device) {
    py::object cupy = loaded("cupy");
    if (!cupy) return kLegacyStream;
    return legacy_if_null(py::cast<Stream>(cupy.attr("cuda").attr("get_current_stream")(device).attr("ptr")));
}

void note_stream(const dlpack::Exchange& library, int device, Foreigners* foreign) {
    const Stream stream = current_stream(library, device);
    const auto is_it = [=](const Foreign& one) { return one.device == device && one.stream == stream && !one.array; };
    if (std::ranges::none_of(*foreign, is_it)) foreign->push_back({{}, device, stream});
}

Stream stream_of(py::handle object) {
    try {
        py::tuple pair(object.attr("__cuda_stream__")());
        if (pair.size() == 2 && py::cast<int>(pair[0]) == 0) return legacy_if_null(py::cast<Stream>(pair[1]));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
    } catch (py::cast_error&) {
    }
    throw py::type_error("stream is of type " + type_name(object) + ", expected an object whose __cuda_stream__ " +
                         "gives (0, handle), as a stream of CuPy");
}

Stream StreamOrder::stream_on(int device) const {
    return streams_[std::ranges::find(devices_, device) - devices_.begin()];
}

bool StreamOrder::is_captured() const {
    for (int device : devices_)
        if (gpu_.is_capturing(device, stream_on(device))) return true;
    return false;
}

// In a graph, a stream outside of the graph cannot be waited for. A stream that is made to wait for one in the graph
// joins the graph.
void StreamOrder::order(bool before) const {
    for (const Foreign& other : foreign_) {
        const Stream own = stream_on(other.device);
        if (!other.stream || other.stream == own) continue;
        if (gpu_.is_capturing(other.device, own) && !gpu_.is_capturing(other.device, other.stream)) continue;
        before ? gpu_.order(other.device, other.stream, own) : gpu_.order(other.device, own, other.stream);
    }
}

namespace {

// Arrays of other libraries on which a stream still works.
class InFlight {
public:
    // The list of the process. It is never destroyed: at exit, there is no interpreter that could release arrays.
    static InFlight& all() {
        static auto& list = *new InFlight;
        return list;
    }

    void add(std::unique_ptr<Mark> done, std::vector<py::object> arrays) {
        const std::lock_guard lock(mutex_);
        waiting_.emplace_back(std::move(done), std::move(arrays));
    }

    // Let go of the arrays that are no longer needed. Their destruction may run anybody's code, so the lock is not
    // held.
    void sweep() {
        std::vector<Waiting> done;
        {
            const std::lock_guard lock(mutex_);
            for (; !waiting_.empty() && waiting_.front().first->is_reached(); waiting_.pop_front())
                done.push_back(std::move(waiting_.front()));
        }
    }

private:
    using Waiting = std::pair<std::unique_ptr<Mark>, std::vector<py::object>>;

    std::mutex mutex_;
    std::deque<Waiting> waiting_;
};

}  // namespace

void StreamOrder::end() {
    order(false);
    InFlight::all().sweep();
    if (is_captured()) return;  // the arrays of a graph are kept by the caller
    for (int device : devices_) {
        std::vector<py::object> arrays;
        for (const Foreign& one : foreign_)
            if (one.device == device && one.array) arrays.push_back(one.array);
        if (!arrays.empty()) InFlight::all().add(gpu_.mark(device, stream_on(device)), std::move(arrays));
    }
}

}  // namespace fusedstep
