#include "binding/plan.h"

#include <pybind11/critical_section.h>

#include <algorithm>

#include "binding/update.h"
#include "element/around.h"
#include "element/float_mode.h"
#include "element/philox.h"
#include "engines/cpu/dispatch.h"

namespace fusedstep {
namespace {

const char* kKindNames[] = {"one array", "a sequence", "a mapping"};

bool is_instance_of_abc(py::handle object, const char* abc) {
    return py::isinstance(object, py::module_::import("collections.abc").attr(abc));
}

Container open(py::object object, const char* role) {
    if (PyDict_CheckExact(object.ptr())) return {Kind::kMapping, object};
    if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr())) return {Kind::kSequence, object};
    if (is_array(object)) return {Kind::kArray, object};
    if (is_instance_of_abc(object, "Mapping")) {
        py::dict items;
        for (py::handle key : object) items[key] = object[key];
        return {Kind::kMapping, items};
    }
    if (is_instance_of_abc(object, "Sequence") && !py::isinstance<py::str>(object) &&
        !py::isinstance<py::bytes>(object))
        return {Kind::kSequence, py::list(object)};
    throw py::type_error(std::string(role) + " is of type " + type_name(object) +
                         ", expected an array, or a sequence or mapping of arrays");
}

// Whether two keys are equal, decided without running anybody's code: str and int only.
bool plainly_equal(py::handle a, py::handle b) {
    if (a.is(b)) return true;
    if ((PyUnicode_CheckExact(a.ptr()) && PyUnicode_CheckExact(b.ptr())) ||
        (PyLong_CheckExact(a.ptr()) && PyLong_CheckExact(b.ptr())))
        return PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ) == 1;
    return false;
}

// What the hyperparameter number j of a rule is called.
std::string_view hyper_name(const Kernel& kernel, size_t j) {
    const size_t own = kernel.rule_hyper_count;
    return j < own ? word(kernel.hypers, j) : word(Around::hypers, j - own);
}

py::tuple shape_tuple(Shape shape) {
    py::tuple tuple(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) tuple[i] = shape[i];
    return tuple;
}

py::object device_of(const View& view) {
    return view.device == kHost ? py::none() : py::object(py::int_(view.device));
}

}  // namespace

Plan::Plan(int rule, py::object params) : rule_(rule) {
    Container container = open(params, "params");
    kind_ = container.kind;
    if (kind_ == Kind::kMapping) {
        keys_ = py::list(container.items);
    } else {
        size_t n = kind_ == Kind::kArray ? 1 : py::len(container.items);
        for (size_t i = 0; i < n; ++i) keys_.append(i);
    }
    tensors_.resize(keys_.size());
    slots_.resize(keys_.size());
}

// Which loop updates a tensor follows from the types of its arrays.
void Plan::settle(size_t i) {
    Tensor& tensor = tensors_[i];
    const View* views = tensor.views;
    Types types{views[kParam].type, views[kGrad].type, views[kParam].type, views[kMaster].type};
    for (int role = kStates; role <= kAverage; ++role)
        if (tensor.has(role)) types.state = views[role].type;
    slots_[i].become(types, kernel_of(rule_).state_count);
    tensor.ready = is_ready(i);
}

// Whether a tensor has all that its hyperparameters ask for, and no master that they do not.
bool Plan::is_ready(size_t i) const {
    const Tensor& tensor = tensors_[i];
    if (!tensor.bound || rows_.empty()) return false;
    const Row& row = rows_[tensor.row];
    const Type master = kHalves & among(tensor.views[kParam].type) ? row.master : kTypes;
    return (tensor.has(kAverage) || !row.averages) && tensor.views[kMaster].type == master;
}

Name Plan::name(const char* role, const char* role_of_one, size_t i) const {
    if (kind_ == Kind::kArray) return {role_of_one};
    return {role, keys_[i].ptr()};
}

Name Plan::span_name(size_t id) const {
    size_t i = id / kRoles, role = id % kRoles;
    if (role == kParam) return param_name(i);
    if (role == kGrad) return grad_name(i);
    if (role == kAverage) return {"ema", keys_[i].ptr()};
    if (role == kMaster)
        return {"state", keys_[i].ptr(), tensors_[i].views[kMaster].type == kUInt16 ? "remainder" : "master"};
    return {"state", keys_[i].ptr(), word(kernel_of(rule_).states, role - kStates)};
}

bool Plan::fetch_params(const Container& params) {
    if (params.kind != kind_) return false;
    size_t n = tensors_.size();
    PyObject* items = params.items.ptr();
    auto take = [&](PyObject* item) { params_.push_back(py::reinterpret_borrow<py::object>(item)); };
    if (kind_ == Kind::kMapping) {
        if (static_cast<size_t>(PyDict_GET_SIZE(items)) != n) return false;
        Py_ssize_t at = 0;
        PyObject *key, *value;
        for (size_t i = 0; PyDict_Next(items, &at, &key, &value); ++i) {
            if (!plainly_equal(key, PyList_GET_ITEM(keys_.ptr(), i))) return false;
            take(value);
        }
    } else if (kind_ == Kind::kSequence) {
        if (static_cast<size_t>(PySequence_Fast_GET_SIZE(items)) != n) return false;
        for (size_t i = 0; i < n; ++i) take(PySequence_Fast_GET_ITEM(items, i));
    } else {
        take(items);
    }
    return true;
}

void Plan::fetch_grads(const Container& grads) {
    size_t n = tensors_.size();
    PyObject* items = grads.items.ptr();
    auto take = [&](PyObject* item) { grads_.push_back(py::reinterpret_borrow<py::object>(item ? item : Py_None)); };
    if (kind_ == Kind::kMapping) {
        // In step with the parameters as long as the keys agree, by look-up from then on.
        Py_ssize_t at = 0, found = 0;
        PyObject *key, *value;
        size_t i = 0;
        for (; i < n && PyDict_Next(items, &at, &key, &value); ++i, ++found) {
            if (!plainly_equal(key, PyList_GET_ITEM(keys_.ptr(), i))) break;
            take(value);
        }
        for (; i < n; ++i) {
            value = PyDict_GetItemWithError(items, PyList_GET_ITEM(keys_.ptr(), i));
            if (!value && PyErr_Occurred()) throw py::error_already_set();
            found += value != nullptr;
            take(value);
        }
        if (found != PyDict_GET_SIZE(items))
            for (py::handle name : py::list(grads.items))  // a list of its own: comparing keys may run anybody's code
                if (!keys_.contains(name))
                    throw py::value_error(Name{"grads", name}.text() +
                                          " belongs to no parameter, expected only keys of params");
    } else if (kind_ == Kind::kSequence) {
        if (static_cast<size_t>(PySequence_Fast_GET_SIZE(items)) != n)
            throw py::value_error("grads has " + std::to_string(PySequence_Fast_GET_SIZE(items)) + " items, expected " +
                                  std::to_string(n) + " like params");
        for (size_t i = 0; i < n; ++i) take(PySequence_Fast_GET_ITEM(items, i));
    } else {
        take(items);
    }
}

// Collect the arrays of a step. False if the parameters are not, key by key, those of this plan.
bool Plan::fetch(py::object params, py::object grads) {
    Container p = open(params, "params");
    {
        py::scoped_critical_section lock(p.items);
        if (!fetch_params(p)) return false;
    }
    if (kind_ == Kind::kArray && grads.is_none()) {
        grads_.push_back(grads);
    } else {
        Container g = open(grads, "grads");
        if (g.kind != kind_)
            throw py::type_error(std::string("grads is ") + kKindNames[static_cast<int>(g.kind)] + ", expected " +
                                 kKindNames[static_cast<int>(kind_)] + " like params");
        py::scoped_critical_section lock(g.items);
        fetch_grads(g);
    }
    auto is_plain = [](const py::object& array) { return Py_TYPE(array.ptr()) == ndarray_type(); };
    for (size_t i = 0; i < tensors_.size(); ++i) {
        if (!is_plain(params_[i])) params_[i] = as_array(std::move(params_[i]), param_name(i));
        if (!is_plain(grads_[i]) && !grads_[i].is_none()) grads_[i] = as_array(std::move(grads_[i]), grad_name(i));
    }
    return true;
}

// Look at a parameter; its states and its master say what shape it has, and which types it may have.
View Plan::look_at_param(size_t i) {
    const Tensor& tensor = tensors_[i];
    Like like{{}, tensor.views[kParam].type, kFloats, {}};
    for (int role = kRoles - 1; role >= kStates; --role)
        if (tensor.has(role)) {
            like.shape = tensor.shape;
            like.types &=
                role == kMaster ? kHalves & params_of(tensor.views[role].type) : params_of(tensor.views[role].type);
            like.name = span_name(i * kRoles + role);
            if (like.types & among(tensor.views[role].type)) like.type = tensor.views[role].type;
        }
    like.device = kAnywhere;
    View seen = look(params_[i], param_name(i), true, like.types == kFloats ? nullptr : &like, &foreign_);
    const int first = tensors_.front().views[kParam].device;
    if (i && (seen.device == kHost) != (first == kHost))
        refuse_device(param_name(i), seen.device, param_name(0), first);
    return seen;
}

View Plan::look_at_grad(size_t i, bool writable) {
    const View& param = tensors_[i].views[kParam];
    Like like{tensors_[i].shape, param.type, grads_of(param.type), param_name(i), param.device};
    return look(grads_[i], grad_name(i), writable, &like, &foreign_);
}

// A tensor whose parameter is elsewhere than its states makes no step before they have followed.
void Plan::moved(size_t i) {
    Tensor& tensor = tensors_[i];
    for (int role = kStates; role < kRoles; ++role)
        if (tensor.has(role)) tensor.bound = false;
}

// Everything about every array, before the first write. What was seen last time is only recognised. False if a tensor
// lacks what its step needs.
bool Plan::check_arrays() {
    bool ready = true;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        Tensor& tensor = tensors_[i];
        View& param = tensor.views[kParam];
        View& grad = tensor.views[kGrad];
        if (!param.is_still(params_[i], kWritable)) {
            View seen = look_at_param(i);
            if (seen.data != param.data || seen.bytes() != param.bytes()) disjoint_ = owned_sorted_ = false;
            if (seen.data != param.data || seen.size != param.size || seen.type != param.type ||
                seen.device != param.device)
                tensors_changed_ = true;
            if (seen.device != param.device) moved(i);
            tensor.shape.assign(seen.shape.begin(), seen.shape.end());
            param = std::move(seen);
            param.shape = tensor.shape;
            grad = {};
            slots_[i].arrays[kParam] = param.data;
            settle(i);
        }
        slots_[i].size = 0;
        grads_changed_ = grads_changed_ || tensor.takes_part == grads_[i].is_none();
        tensor.takes_part = !grads_[i].is_none();
        if (!tensor.takes_part) {
            grad = {};
            continue;
        }
        const bool zeroed = !rows_.empty() && rows_[tensor.row].zero_grad;
        if (!grad.data || !grad.is_still(grads_[i], zeroed ? kWritable : kReadable)) {
            grad = {};
            disjoint_ = false;
            grad = look_at_grad(i, zeroed);
            grad.shape = tensor.shape;
            grads_changed_ = true;
            slots_[i].arrays[kGrad] = grad.data;
            settle(i);
        }
        slots_[i].size = param.size;
        ready = ready && tensor.ready;
    }
    if (!disjoint_) check_overlap();
    return ready;
}

void Plan::check_overlap() {
    if (!owned_sorted_) {
        owned_spans_.clear();
        for (size_t i = 0; i < tensors_.size(); ++i)
            for (int role = 0; role < kRoles; ++role)
                if (role != kGrad) add_span(owned_spans_, tensors_[i].views[role], i * kRoles + role);
        sort(owned_spans_);
        owned_sorted_ = true;
    }
    grad_spans_.clear();
    for (size_t i = 0; i < tensors_.size(); ++i) add_span(grad_spans_, tensors_[i].views[kGrad], i * kRoles + kGrad);
    sort(grad_spans_);
    auto [a, b] = find_overlap(owned_spans_, grad_spans_);
    if (a) refuse_overlap(span_name(std::max(a->id, b->id)), span_name(std::min(a->id, b->id)));
    disjoint_ = true;
}

py::list Plan::check(py::object params, py::object grads) {
    Turn turn(*this);
    if (!fetch(params, grads))
        throw std::runtime_error("params changed while they were looked at, expected them to stay as they are");
    check_arrays();
    py::list seen;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        if (grads_[i].is_none())
            seen.append(py::none());
        else
            seen.append(py::make_tuple(shape_tuple(tensors_[i].shape), dtype_of(tensors_[i].views[kParam].type),
                                       device_of(tensors_[i].views[kParam])));
    }
    return seen;
}

void Plan::bind(py::list kept, py::array clocks, py::array_t<int64_t, py::array::c_style> clock_of,
                py::array_t<uint64_t, py::array::c_style> numbers) {
    Turn turn(*this);
    size_t n = tensors_.size();
    if (kept.size() != n || static_cast<size_t>(clock_of.size()) != n || static_cast<size_t>(numbers.size()) != n ||
        clocks.itemsize() != sizeof(Clock))
        throw py::value_error("bind: expected arrays, a clock and a number for each tensor");
    for (const Tensor& tensor : tensors_)
        if (!tensor.has(kParam)) throw py::value_error("bind: expected a check first");
    auto* clock = static_cast<Clock*>(clocks.mutable_data());
    held_ = {clocks};
    owned_sorted_ = disjoint_ = false;
    tensors_changed_ = true;
    const size_t state_count = kernel_of(rule_).state_count;
    for (size_t i = 0; i < n; ++i) {
        Tensor& tensor = tensors_[i];
        int64_t at = clock_of.at(i);
        if (at < 0 || at >= clocks.size()) throw py::index_error("bind: no such clock");
        tensor.clock = clock + at;
        tensor.number = numbers.at(i);
        tensor.bound = !kept[i].is_none();
        if (!tensor.bound) continue;
        py::tuple arrays = kept[i];
        if (arrays.size() != state_count + 2) throw py::value_error("bind: wrong number of arrays");
        const Type param = tensor.views[kParam].type;
        const int device = tensor.views[kParam].device;
        Like like{tensor.shape, param, states_of(param), param_name(i), device};
        for (size_t j = 0; j < arrays.size(); ++j) {
            const int role = j < state_count ? kStates + j : j == state_count ? kAverage : kMaster;
            py::object array = arrays[j];
            if (array.is_none()) continue;
            Name name = span_name(i * kRoles + role);
            if (role == kMaster) {
                const bool split = py::cast<int64_t>(array.attr("dtype").attr("itemsize")) == kItemSize[kUInt16];
                const Type master = split ? kUInt16 : kFloat32;
                if (!(params_of(master) & kHalves & among(param))) {
                    tensor.bound = false;  // so that no step is made with a parameter that it does not fit
                    continue;
                }
                name.state = split ? "remainder" : "master";
                like = {tensor.shape, master, among(master), param_name(i), device};
            }
            array = as_array(std::move(array), name);
            like.device = kAnywhere;
            View seen = look(array, name, true, &like, &foreign_);
            if (seen.device != device) {  // it follows its parameter before that makes a step
                tensor.bound = false;
                break;
            }
            View& view = tensor.views[role] = std::move(seen);
            view.shape = tensor.shape;
            slots_[i].arrays[role] = view.data;
            like = {tensor.shape, view.type, among(view.type), name, device};  // the others are of its type
            // The owner of the memory too: NumPy does not resize what somebody else refers to.
            if (device == kHost) held_.push_back(py::reinterpret_borrow<py::array>(array).base());
            held_.push_back(std::move(array));
        }
        settle(i);
    }
}

void Plan::set_hypers(py::list rows, py::array_t<int64_t, py::array::c_style> row_of, bool skip_nonfinite) {
    Turn turn(*this);
    const Kernel& kernel = kernel_of(rule_);
    const auto row_of_tensor = row_of.unchecked<1>();
    if (static_cast<size_t>(row_of.size()) != tensors_.size())
        throw py::value_error("set_hypers: expected a row of hyperparameters for each tensor");
    for (py::ssize_t i = 0; i < row_of.size(); ++i)
        if (row_of_tensor(i) < 0 || static_cast<size_t>(row_of_tensor(i)) >= rows.size())
            throw py::index_error("set_hypers: no such row");
    std::vector<cuda::Number> numbers;
    std::vector<py::object> live;
    int device = kHost;
    for (py::handle row : rows)
        for (py::handle number : py::cast<py::list>(row)) {
            const size_t j = numbers.size() % kernel.hyper_count;
            if (PyFloat_CheckExact(number.ptr())) {
                numbers.push_back({PyFloat_AS_DOUBLE(number.ptr()), nullptr});
                continue;
            }
            numbers.push_back(number_of(number, {hyper_name(kernel, j)}, &device, &foreign_));
            if (numbers.back().at) live.push_back(py::reinterpret_borrow<py::object>(number));
        }
    if (numbers.size() != rows.size() * kernel.hyper_count)
        throw py::value_error("set_hypers: wrong number of hyperparameters");
    table_.clear();
    for (const cuda::Number& number : numbers) table_.push_back(number.value);
    numbers_ = std::move(numbers);
    live_ = std::move(live);
    numbers_device_ = device;
    hypers_changed_ = true;
    rows_.clear();
    measures_ = skip_nonfinite_ = skip_nonfinite;
    for (size_t row = 0; row < rows.size(); ++row) {
        const double* hypers = table_.data() + row * kernel.hyper_count;
        const auto& around = *reinterpret_cast<const Around::Hyper*>(hypers + kernel.rule_hyper_count);
        const Type master = around.master == 1 ? kFloat32 : around.master == 2 ? kUInt16 : kTypes;
        rows_.push_back({around.averages(), around.zero_grad != 0, master, Around::scale(around, 1),
                         Around::variant(around), nullptr});
        measures_ = measures_ || around.measures();
    }
    for (size_t i = 0; i < tensors_.size(); ++i) {
        grads_changed_ = grads_changed_ || tensors_[i].row != row_of_tensor(i);
        tensors_[i].row = row_of_tensor(i);
        tensors_[i].ready = is_ready(i);
    }
}

const double* Plan::hypers(size_t i) const {
    return table_.data() + tensors_[i].row * kernel_of(rule_).hyper_count;
}

// Read the gradients before the step: their norm, and the number of the first tensor whose gradient is not finite,
// where that matters, or None. Sets the factors that clip.
py::tuple Plan::examine(double grad_scale) {
    std::vector<Slot> slots;  // no others count: not even as zeros, which would take places in the norm
    std::vector<size_t> tensor_of;
    std::vector<const double*> hypers_of;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        if (grads_[i].is_none()) continue;
        slots.push_back(slots_[i]);
        tensor_of.push_back(i);
        hypers_of.push_back(hypers(i));
    }
    Measure found = measure(kernel_of(rule_), slots, hypers_of, grad_scale, skip_nonfinite_);
    for (size_t i = 0; i < slots.size(); ++i) slots_[tensor_of[i]].scale = found.scales[i];
    if (found.offender < 0) return py::make_tuple(found.norm, py::none());
    return py::make_tuple(found.norm, tensor_of[found.offender]);
}

// Advance the clocks and derive the scalars. Tensors that share hyperparameters and clock share a group of scalars;
// usually that is all of them.
void Plan::derive(double grad_scale) {
    FloatMode mode;
    mode.ieee();
    const Kernel& kernel = kernel_of(rule_);
    derived_.clear();
    derived_.reserve(tensors_.size());
    for (Row& row : rows_) row.group = nullptr;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        if (grads_[i].is_none()) continue;
        Row& row = rows_[tensors_[i].row];
        Clock& clock = *tensors_[i].clock;
        if (!row.group || row.group->before != clock) {
            row.group = &derived_.emplace_back();
            row.group->before = clock;
            kernel.derive(hypers(i), clock, *row.group);
            row.group->after = clock;
        }
        clock = row.group->after;
        slots_[i].group = static_cast<int32_t>(row.group - derived_.data());
        if (row.group->stochastic) slots_[i].noise = noise_key(row.group->seed, clock.t, tensors_[i].number);
        if (!measures_) slots_[i].scale = row.scale * grad_scale;
    }
}

py::object Plan::run(py::object params, py::object grads, py::object grad_scale, py::object stream) {
    Turn turn(*this);
    if (!fetch(params, grads)) return py::bool_(false);
    if (!check_arrays()) return py::bool_(false);
    if (on_gpu()) return run_on_gpu(grad_scale, stream);
    if (!live_.empty() || (!PyFloat_CheckExact(grad_scale.ptr()) && is_on_gpu(grad_scale)))
        throw py::type_error(
            "a hyperparameter or grad_scale is on a GPU, expected a number like params in host memory");
    if (!stream.is_none()) throw py::type_error("stream is given, expected None with params in host memory");
    if (session_) close_session();
    return run_on_host(py::cast<double>(grad_scale));
}

py::object Plan::run_on_host(double grad_scale) {
    py::object result = py::bool_(true);
    if (measures_) {
        py::tuple found = examine(grad_scale);
        result = found;
        if (!found[1].is_none()) {
            for (size_t i = 0; i < tensors_.size(); ++i)
                if (slots_[i].size && rows_[tensors_[i].row].zero_grad) zero_grad(slots_[i], 0, slots_[i].size);
            return result;
        }
    }

    // From here on nothing fails.
    derive(grad_scale);
    run_slots(rule_, slots_, derived_.data());
    return result;
}

}  // namespace fusedstep
