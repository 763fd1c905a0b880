#include "binding/plan.h"

#include <pybind11/critical_section.h>

#include <algorithm>
#include <array>

#include "binding/container.h"
#include "element/around.h"
#include "element/norm.h"

namespace fusedstep {
namespace {

// What hyperparameter j of a rule is called.
std::string_view hyper_name(const RuleInfo& rule, size_t j) {
    const size_t own = rule.own_hyper_count;
    return j < own ? word(rule.hypers, j) : word(names_around(), j - own);
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

Plan::Plan(const RuleInfo& rule, py::object params) : rule_(rule) {
    Container container = open_container(params, "params");
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

void Plan::update_types(size_t i) {
    Tensor& tensor = tensors_[i];
    const View* views = tensor.views;
    Types types{views[kParam].type, views[kGrad].type, views[kParam].type, views[kMaster].type};
    for (int role = kStates; role <= kAverage; ++role)
        if (tensor.has(role)) types.state = views[role].type;
    slots_[i].types = types;
    tensor.ready = is_ready(i);
}

// Whether a tensor has all that its hyperparameters ask for, and no master that they do not.
bool Plan::is_ready(size_t i) const {
    const Tensor& tensor = tensors_[i];
    if (!tensor.bound || rows_.empty()) return false;
    const Row& row = rows_[slots_[i].row];
    const Type master = contains(kNarrow, tensor.views[kParam].type) ? row.master : kTypes;
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
    return {"state", keys_[i].ptr(), word(rule_.states, role - kStates)};
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
        // Gradients are taken in order as long as their keys are those of the parameters, and looked up from then on.
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
            for (py::handle name : py::list(grads.items))  // a copy: comparing keys may run code that changes `items`
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
    Container p = open_container(params, "params");
    {
        py::scoped_critical_section lock(p.items);
        if (!fetch_params(p)) return false;
    }
    if (kind_ == Kind::kArray && grads.is_none()) {
        grads_.push_back(grads);
    } else {
        Container g = open_container(grads, "grads");
        if (g.kind != kind_)
            throw py::type_error(std::string("grads is ") + kind_text(g.kind) + ", expected " + kind_text(kind_) +
                                 " like params");
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
                role == kMaster ? kNarrow & params_of(tensor.views[role].type) : params_of(tensor.views[role].type);
            like.name = span_name(i * kRoles + role);
            if (contains(like.types, tensor.views[role].type)) like.type = tensor.views[role].type;
        }
    like.device = kAnywhere;
    return look(params_[i], param_name(i), true, like.types == kFloats ? nullptr : &like, &foreign_);
}

View Plan::look_at_grad(size_t i, bool writable) {
    const View& param = tensors_[i].views[kParam];
    Like like{tensors_[i].shape, param.type, grads_of(param.type), param_name(i), param.device};
    return look(grads_[i], grad_name(i), writable, &like, &foreign_);
}

// Let go of states on another device than their parameter: `run` will return false, and the optimizer move the states.
void Plan::unbind(size_t i) {
    Tensor& tensor = tensors_[i];
    for (int role = kStates; role < kRoles; ++role)
        if (tensor.has(role)) tensor.bound = false;
}

// Check everything about every array, before the first write. Arrays that were seen last time are only recognised.
// Returns false if a tensor lacks what its step needs.
bool Plan::check_arrays() {
    bool ready = true;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        Tensor& tensor = tensors_[i];
        Slot& slot = slots_[i];
        View& param = tensor.views[kParam];
        View& grad = tensor.views[kGrad];
        if (!param.is_still(params_[i], kWritable)) {
            View seen = look_at_param(i);
            if (seen.data != param.data || seen.bytes() != param.bytes()) disjoint_ = owned_sorted_ = false;
            if (seen.data != param.data || seen.size != param.size || seen.type != param.type ||
                seen.device != param.device)
                tensors_changed_ = true;
            if (seen.device != param.device) unbind(i);
            tensor.shape.assign(seen.shape.begin(), seen.shape.end());
            param = std::move(seen);
            param.shape = tensor.shape;
            grad = {};
            slot.arrays[kParam] = param.data;
            slot.size = param.size;
            slot.device = param.device;
            update_types(i);
        }
        // Also of a parameter that was only recognised: the first one may have moved away from it.
        const int first = slots_.front().device;
        if ((slot.device == kHost) != (first == kHost)) refuse_device(param_name(i), slot.device, param_name(0), first);
        const bool frozen = !rows_.empty() && rows_[slot.row].frozen;
        const bool has_grad = !grads_[i].is_none() && !frozen;
        grads_changed_ = grads_changed_ || slot.has_grad != has_grad;
        slot.has_grad = has_grad;
        if (!slot.has_grad) {
            grad = {};
            continue;
        }
        const bool zeroed = !rows_.empty() && rows_[slot.row].zero_grad;
        if (!grad.data || !grad.is_still(grads_[i], zeroed ? kWritable : kReadable)) {
            grad = {};
            disjoint_ = false;
            grad = look_at_grad(i, zeroed);
            grad.shape = tensor.shape;
            grads_changed_ = true;
            slot.arrays[kGrad] = grad.data;
            update_types(i);
        }
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
                py::array_t<uint64_t, py::array::c_style> noise_ids, py::object origins) {
    Turn turn(*this);
    size_t n = tensors_.size();
    if (kept.size() != n || static_cast<size_t>(clock_of.size()) != n || static_cast<size_t>(noise_ids.size()) != n ||
        clocks.itemsize() != sizeof(Clock))
        throw py::value_error("bind: expected arrays, a clock and a noise id for each tensor");
    for (const Tensor& tensor : tensors_)
        if (!tensor.has(kParam)) throw py::value_error("bind: expected a check first");
    std::vector<int64_t> first_elements(n);
    if (!origins.is_none()) {
        const auto given = py::cast<py::array_t<int64_t, py::array::c_style>>(origins);
        if (static_cast<size_t>(given.size()) != n) throw py::value_error("bind: expected an origin for each tensor");
        std::copy_n(given.data(), n, first_elements.begin());
    }
    for (int64_t origin : first_elements)
        if (origin < 0 || origin % kBlock != 0)
            throw py::value_error("bind: an origin is " + std::to_string(origin) + ", expected a multiple of " +
                                  std::to_string(kBlock) + " elements");
    auto* clock = static_cast<Clock*>(clocks.mutable_data());
    held_ = {clocks};
    owned_sorted_ = disjoint_ = false;
    tensors_changed_ = true;
    const size_t state_count = rule_.state_count;
    for (size_t i = 0; i < n; ++i) {
        Tensor& tensor = tensors_[i];
        int64_t at = clock_of.at(i);
        if (at < 0 || at >= clocks.size()) throw py::index_error("bind: no such clock");
        slots_[i].clock = clock + at;
        slots_[i].noise_id = noise_ids.at(i);
        slots_[i].origin = first_elements[i];
        tensor.bound = !kept[i].is_none();
        if (!tensor.bound) continue;
        py::tuple arrays = kept[i];
        if (arrays.size() != state_count + 2) throw py::value_error("bind: wrong number of arrays");
        const Type param = tensor.views[kParam].type;
        const int device = tensor.views[kParam].device;
        Like like{tensor.shape, param, states_of(param), param_name(i), device};
        for (size_t j = 0; j < arrays.size(); ++j) {
            const int role =
                j < state_count ? kStates + static_cast<int>(j) : int(j == state_count ? kAverage : kMaster);
            py::object array = arrays[j];
            if (array.is_none()) continue;
            Name name = span_name(i * kRoles + role);
            if (role == kMaster) {
                const bool split = py::cast<int64_t>(array.attr("dtype").attr("itemsize")) == kItemSize[kUInt16];
                const Type master = split ? kUInt16 : kFloat32;
                if (!contains(params_of(master) & kNarrow, param)) {
                    tensor.bound = false;  // no step is made while master and parameter do not fit
                    continue;
                }
                name.state = split ? "remainder" : "master";
                like = {tensor.shape, master, set_of(master), param_name(i), device};
            }
            array = as_array(std::move(array), name);
            like.device = kAnywhere;
            View seen = look(array, name, true, &like, &foreign_);
            if (seen.device != device) {  // the optimizer moves the array before the next step
                tensor.bound = false;
                break;
            }
            View& view = tensor.views[role] = std::move(seen);
            view.shape = tensor.shape;
            slots_[i].arrays[role] = view.data;
            like = {tensor.shape, view.type, set_of(view.type), name, device};  // further arrays have its type
            // The owner of the memory is kept too: NumPy resizes no array that somebody else refers to.
            if (device == kHost) held_.push_back(py::reinterpret_borrow<py::array>(array).base());
            held_.push_back(std::move(array));
        }
        update_types(i);
    }
}

void Plan::set_hypers(py::list rows, py::array_t<int64_t, py::array::c_style> row_of, bool skip_nonfinite) {
    Turn turn(*this);
    const auto row_of_tensor = row_of.unchecked<1>();
    if (static_cast<size_t>(row_of.size()) != tensors_.size())
        throw py::value_error("set_hypers: expected a row of hyperparameters for each tensor");
    for (py::ssize_t i = 0; i < row_of.size(); ++i)
        if (row_of_tensor(i) < 0 || static_cast<size_t>(row_of_tensor(i)) >= rows.size())
            throw py::index_error("set_hypers: no such row");
    std::vector<Number> hypers;
    hypers.reserve(rows.size() * rule_.hyper_count);
    std::vector<py::object> live;
    int device = kHost;
    for (py::handle row : rows)
        for (py::handle number : py::cast<py::list>(row)) {
            if (PyFloat_CheckExact(number.ptr())) {
                hypers.push_back({PyFloat_AS_DOUBLE(number.ptr()), nullptr});
                continue;
            }
            const size_t j = hypers.size() % rule_.hyper_count;
            hypers.push_back(number_of(number, {hyper_name(rule_, j)}, &device, &foreign_));
            if (hypers.back().at) live.push_back(py::reinterpret_borrow<py::object>(number));
        }
    if (hypers.size() != rows.size() * rule_.hyper_count)
        throw py::value_error("set_hypers: wrong number of hyperparameters");
    rows_.clear();
    std::array<double, kMaxHypers> values;
    for (size_t begin = 0; begin < hypers.size(); begin += rule_.hyper_count) {
        for (int j = 0; j < rule_.hyper_count; ++j) values[j] = hypers[begin + j].value;
        const auto& around = *reinterpret_cast<const Around::Hyper*>(values.data() + rule_.own_hyper_count);
        const Type master = around.master == 1 ? kFloat32 : around.master == 2 ? kUInt16 : kTypes;
        rows_.push_back({around.averages(), around.zero_grad != 0, around.frozen != 0, master});
    }
    hypers_ = std::move(hypers);
    live_ = std::move(live);
    hypers_device_ = device;
    hypers_changed_ = true;
    skip_nonfinite_ = skip_nonfinite;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        grads_changed_ = grads_changed_ || slots_[i].row != row_of_tensor(i);
        slots_[i].row = static_cast<int32_t>(row_of_tensor(i));
        tensors_[i].ready = is_ready(i);
    }
}

}  // namespace fusedstep
