#include "binding/gpu.h"

#include <algorithm>
#include <deque>
#include <mutex>

namespace fusedstep {
namespace {

constexpr int kLegacyStream = 1;

// A module that somebody has imported, or nothing.
py::object loaded(const char* name) {
    auto text = py::str(name);
    return py::reinterpret_steal<py::object>(PyImport_GetModule(text.ptr()));
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

cuda::Stream legacy_if_null(cuda::Stream stream) {
    return stream ? stream : kLegacyStream;
}

int64_t vector_length(Type param) {
    return param == kFloat64 ? 2 : 4;
}

// What an interface says of a type; bfloat16 has no text of its own there.
Type type_in(const std::string& text, const py::object& dtype) {
    if (py::isinstance<py::dtype>(dtype)) return type_of(dtype.ptr());
    if (text == "<f4") return kFloat32;
    if (text == "<f8") return kFloat64;
    if (text == "<f2") return kFloat16;
    if (text == "<u2") return kUInt16;
    if (text == "<V2" && std::string(py::str(dtype)).ends_with("bfloat16")) return kBFloat16;
    return kTypes;
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

const cuda::Engine& gpu_engine(const Name& name) {
    static std::atomic<const cuda::Engine*> found{nullptr};
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
        const cuda::Engine* engine = py::reinterpret_borrow<py::capsule>(module.attr("engine"));
        if (engine->layout != cuda::kLayout)
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
    cuda::Stream stream = 0;
    try {
        py::tuple data = interface["data"];
        view.data = reinterpret_cast<char*>(py::cast<uintptr_t>(data[0]));
        sight.writable = !py::cast<bool>(data[1]);
        sight.dtype = py::getattr(array, "dtype", py::none());
        const std::string text = py::cast<std::string>(interface["typestr"]);
        view.type = type_in(text, sight.dtype);
        if (sight.dtype.is_none()) sight.dtype = py::str(text);
        view.own_shape = std::make_shared<std::vector<py::ssize_t>>();
        view.size = 1;
        for (py::handle n : py::tuple(interface["shape"])) {
            view.own_shape->push_back(py::cast<py::ssize_t>(n));
            if (view.own_shape->back() < 0 || __builtin_mul_overflow(view.size, view.own_shape->back(), &view.size))
                throw py::cast_error();
        }
        int64_t bytes;
        if (__builtin_mul_overflow(view.size, kItemSize[kFloat64], &bytes)) throw py::cast_error();
        view.shape = *view.own_shape;
        sight.contiguous = true;
        py::object strides = interface.attr("get")("strides");
        if (!strides.is_none() && view.size) {
            py::tuple steps(strides);
            if (steps.size() != view.shape.size()) throw py::cast_error();
            py::ssize_t step = kItemSize[view.type];
            for (size_t i = view.shape.size(); i--; step *= view.shape[i])
                if (view.shape[i] != 1 && py::cast<py::ssize_t>(steps[i]) != step) sight.contiguous = false;
        }
        py::object mask = interface.attr("get")("mask");
        if (!mask.is_none()) throw py::type_error(name.text() + " has a mask, expected a plain array");
        py::object theirs = interface.attr("get")("stream");
        if (!theirs.is_none()) stream = legacy_if_null(py::cast<cuda::Stream>(theirs));
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
    const cuda::Engine& engine = gpu_engine(name);
    view.device = view.size ? engine.device_of(view.data) : device_of_empty(array);
    if (view.device == kHost)
        throw py::value_error(name.text() + " is said to be on a GPU, but its address is in host memory");
    if (is_cupy(array))
        view.seen = py::weakref(array);
    else
        foreign->push_back({array, view.device, stream});
    return sight;
}

cuda::Number number_of(py::handle object, const Name& name, int* device, Foreigners* foreign) {
    if (PyFloat_CheckExact(object.ptr()) || !is_on_gpu(object)) return {py::cast<double>(object), nullptr};
    const View view = see_on_gpu(py::reinterpret_borrow<py::object>(object), name, foreign).view;
    if (view.type != kFloat64 || view.size != 1)
        throw py::type_error(name.text() + " is an array on a GPU, expected float64 and one element");
    if (reinterpret_cast<uintptr_t>(view.data) % sizeof(double))
        throw py::value_error(name.text() + " is unaligned, expected an address that is a multiple of 8 bytes");
    if (*device != kHost && *device != view.device)
        throw py::value_error(name.text() + " is " + device_text(view.device) + ", and another number " +
                              device_text(*device) + ", expected all on one GPU");
    *device = view.device;
    return {1, reinterpret_cast<const double*>(view.data)};  // 1, since what is there counts as switched on
}

cuda::Stream current_stream(int device) {
    py::object cupy = loaded("cupy");
    if (!cupy) return kLegacyStream;
    return legacy_if_null(py::cast<cuda::Stream>(cupy.attr("cuda").attr("get_current_stream")(device).attr("ptr")));
}

cuda::Stream stream_of(py::handle object) {
    try {
        py::tuple pair(object.attr("__cuda_stream__")());
        if (pair.size() == 2 && py::cast<int>(pair[0]) == 0) return legacy_if_null(py::cast<cuda::Stream>(pair[1]));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
    } catch (py::cast_error&) {
    }
    throw py::type_error("stream is of type " + type_name(object) + ", expected an object whose __cuda_stream__ " +
                         "gives (0, handle), as a stream of CuPy");
}

int8_t head_of(const void* data, Type type, Type param) {
    if (type == kTypes) return 0;
    const int64_t vector = vector_length(param);
    const auto element = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) / kItemSize[type]);
    return static_cast<int8_t>((vector - element % vector) % vector);
}

cuda::Tensor tensor_on_gpu(const Slot& slot, int64_t size, int32_t device) {
    cuda::Tensor tensor{};
    std::copy(slot.arrays, slot.arrays + kRoles, tensor.arrays);
    tensor.arrays[kGrad] = nullptr;
    tensor.size = size;
    tensor.device = device;
    tensor.param = slot.types.param;
    tensor.state = slot.types.state;
    tensor.master = slot.types.master;
    tensor.head = head_of(slot.arrays[kParam], tensor.param, tensor.param);
    for (int role = kStates; role < kRoles; ++role) {
        const Type type = role == kMaster ? tensor.master : tensor.state;
        if (slot.arrays[role] && head_of(slot.arrays[role], type, tensor.param) != tensor.head)
            tensor.head = cuda::kScattered;
    }
    return tensor;
}

cuda::Gradient gradient_on_gpu(const Slot& slot, int32_t place, int32_t row) {
    cuda::Gradient gradient{};
    gradient.data = slot.arrays[kGrad];
    gradient.place = place;
    gradient.row = row;
    gradient.type = slot.types.grad;
    gradient.head = head_of(gradient.data, gradient.type, slot.types.param);
    gradient.loop = cuda::loop_of(slot.types);
    return gradient;
}

cuda::Body body_of(Variant variant) {
    return variant <= kDecayed ? cuda::kShortBody : cuda::kFullBody;
}

cuda::Stream StreamOrder::stream_on(int device) const {
    return streams_[std::ranges::find(devices_, device) - devices_.begin()];
}

bool StreamOrder::is_captured() const {
    for (int device : devices_)
        if (engine_.is_capturing(device, stream_on(device))) return true;
    return false;
}

// A stream outside of a graph cannot be waited for in it, nor the other way round; the graph grows to a stream that is
// made to wait for one in it.
void StreamOrder::order(bool before) const {
    for (const Foreign& other : foreign_) {
        const cuda::Stream own = stream_on(other.device);
        if (!other.stream || other.stream == own) continue;
        if (engine_.is_capturing(other.device, own) && !engine_.is_capturing(other.device, other.stream)) continue;
        before ? engine_.order(other.device, other.stream, own) : engine_.order(other.device, own, other.stream);
    }
}

namespace {

// Arrays of other libraries that a stream still works on.
class InFlight {
public:
    // There is one, which is never destroyed: at exit, there is no interpreter any more.
    static InFlight& all() {
        static auto& list = *new InFlight;
        return list;
    }

    void add(std::unique_ptr<cuda::Mark> done, std::vector<py::object> arrays) {
        const std::lock_guard lock(mutex_);
        waiting_.emplace_back(std::move(done), std::move(arrays));
    }

    // Let go of those that are no longer needed. What becomes of them may run anybody's code, so it is not under the
    // lock.
    void sweep() {
        std::vector<Waiting> done;
        {
            const std::lock_guard lock(mutex_);
            for (; !waiting_.empty() && waiting_.front().first->is_reached(); waiting_.pop_front())
                done.push_back(std::move(waiting_.front()));
        }
    }

private:
    using Waiting = std::pair<std::unique_ptr<cuda::Mark>, std::vector<py::object>>;

    std::mutex mutex_;
    std::deque<Waiting> waiting_;
};

}  // namespace

void StreamOrder::end() {
    order(false);
    InFlight::all().sweep();
    if (is_captured()) return;  // the caller keeps what a graph uses
    for (int device : devices_) {
        std::vector<py::object> arrays;
        for (const Foreign& one : foreign_)
            if (one.device == device && one.array) arrays.push_back(one.array);
        if (!arrays.empty()) InFlight::all().add(engine_.mark(device, stream_on(device)), std::move(arrays));
    }
}

}  // namespace fusedstep
