#include "binding/plan.h"

#include <pybind11/critical_section.h>

#include <algorithm>
#include <array>
#include <utility>

#include "binding/arrays/exchange.h"
#include "binding/arrays/layout.h"
#include "binding/sums.h"
#include "element/norm.h"

namespace fusedstep {
namespace {

py::object device_of(const View& view) {
    return view.device == kHost ? py::none() : py::object(py::int_(view.device));
}

// What Python is told of an array: the axes are those that the array has in Python, where complex numbers are no pairs.
py::tuple described(const View& view) {
    const size_t n = view.axes() - view.format.pairs;
    py::tuple shape(n), order(n);
    for (size_t i = 0; i < n; ++i) shape[i] = view.shape()[i];
    size_t at = 0;
    for (size_t axis : order_of(view))
        if (axis < n) order[at++] = axis;
    return py::make_tuple(shape, dtype_of(view.format), device_of(view), order);
}

// What keeps the memory of an array: the array itself, or the one that it is a view of.
py::object owner_of(py::object array) {
    while (PyObject_TypeCheck(array.ptr(), ndarray_type)) {
        auto base = py::reinterpret_borrow<py::object>(py::detail::array_proxy(array.ptr())->base);
        if (!base) break;
        array = std::move(base);
    }
    return array;
}

// A weak reference, or nothing where an object allows none.
py::object weak_reference_to(const py::object& object) {
    auto reference = py::reinterpret_steal<py::object>(PyWeakref_NewRef(object.ptr(), nullptr));
    if (!reference) PyErr_Clear();
    return reference;
}

}  // namespace

Plan::Plan(const RuleInfo& rule, py::object params, bool of_torch) : rule_(rule), tree_(params), of_torch_(of_torch) {
    tensors_.resize(keys().size());
    slots_.resize(keys().size());
}

void Plan::update_types(size_t i) {
    Tensor& tensor = tensors_[i];
    const View* views = tensor.views;
    Types types{views[kParam].type(), views[kGrad].type(), views[kParam].type(), views[kMaster].type()};
    for (int role = kStates; role <= kAverage; ++role)
        if (tensor.has(role)) types.state = views[role].type();
    slots_[i].types = types;
    tensor.ready = is_ready(i);
}

// Whether a tensor has all that its hyperparameters ask for, and no master that they do not.
bool Plan::is_ready(size_t i) const {
    const Tensor& tensor = tensors_[i];
    if (!tensor.bound || rows_.empty()) return false;
    for (int j = 0; j < rule_.state_count; ++j)
        if (!tensor.has(kStates + j)) return false;
    const Row& row = rows_[slots_[i].row];
    const Type master = contains(kNarrow, tensor.views[kParam].type()) ? row.master : kTypes;
    return (tensor.has(kAverage) || !row.averages) && tensor.views[kMaster].type() == master;
}

Name Plan::name(const char* role, const char* role_of_one, size_t i) const {
    if (tree_.is_one_array()) return {role_of_one};
    return {role, keys()[i].ptr()};
}

Name Plan::span_name(size_t id) const {
    const size_t i = id / kRoles, role = id % kRoles;
    const py::handle key = keys()[i].ptr();
    if (role == kParam) return param_name(i);
    if (role == kGrad) return grad_name(i);
    if (role == kAverage) return {"ema", key};
    if (role == kMaster) return {"state", key, tensors_[i].views[kMaster].type() == kUInt16 ? "remainder" : "master"};
    return {"state", key, word(rule_.states, role - kStates)};
}

// Collect the arrays of a step. False if the parameters are not, key by key, those of this plan.
bool Plan::fetch(py::object params, py::object grads) {
    if (!tree_.collect(params, params_)) return false;
    if (!of_torch_ || !grads.is_none()) {
        tree_.collect_gradients(grads, grads_);
        return true;
    }
    static PyObject* const grad = PyUnicode_InternFromString("grad");
    for (const py::object& param : params_) {
        grads_.push_back(py::reinterpret_steal<py::object>(PyObject_GetAttr(param.ptr(), grad)));
        if (!grads_.back()) throw py::error_already_set();
    }
    return true;
}

// A container that makes its items anew each time would have its updates lost: ask such a container twice.
void Plan::check_identity(py::handle params) {
    if (tree_.is_plain()) return;
    std::vector<py::object> again;
    if (!tree_.collect(params, again)) again.clear();
    for (size_t i = 0; i < tensors_.size(); ++i) {
        if (grads_[i].is_none() || (i < again.size() && again[i].is(params_[i]))) continue;
        const auto data = [&](const py::object& array) {
            return look(as_array(array, param_name(i)), param_name(i), Use::kRead, {}, &foreign_).data;
        };
        if (i >= again.size() || data(again[i]) != data(params_[i]))
            throw py::value_error(
                param_name(i).text() +
                " is a new array each time it is asked for, expected the same one: dict(params), say");
    }
}

// A single array has the key 0 whichever it is, so that another one would go on with its states.
void Plan::check_single() {
    const char* const data = tensors_[0].views[kParam].data;
    if (!tensors_[0].has(kParam) || data == single_data_) return;
    if (single_ && is_alive(single_))
        throw py::value_error(
            "param is another array than before, and this optimizer knows one array by the key 0: give several as a "
            "mapping, or use one optimizer for each");
    single_ = weak_reference_to(owner_of(params_[0]));
    single_data_ = data;
}

// Look at a parameter; its states and its master say what shape it has, and which types it may have.
View Plan::look_at_param(size_t i) {
    const Tensor& tensor = tensors_[i];
    Like like;
    like.device = kAnywhere;
    if (of_torch_) like.asked = Asked::kSigns;
    for (int role = kRoles - 1; role >= kStates; --role)
        if (tensor.has(role)) {
            const View& view = tensor.views[role];
            like.view = &view;
            like.types &= role == kMaster ? kNarrow & params_of(view.type()) : params_of(view.type());
            like.name = span_name(i * kRoles + role);
            if (contains(like.types, view.type())) like.format = view.format;
        }
    if (like.view && like.format.type == kTypes) like.format = tensor.views[kParam].format;
    return look(params_[i], param_name(i), Use::kUpdated, like, &foreign_);
}

// Look at a parameter that is not the array of the last step.
void Plan::see_param(size_t i) {
    if (Py_TYPE(params_[i].ptr()) != ndarray_type) params_[i] = as_array(std::move(params_[i]), param_name(i));
    Tensor& tensor = tensors_[i];
    Slot& slot = slots_[i];
    View& param = tensor.views[kParam];
    View seen = look_at_param(i);
    if (seen.data != param.data || seen.bytes() != param.bytes()) disjoint_ = false;
    if (seen.data != param.data || seen.size != param.size || seen.format != param.format ||
        seen.device != param.device)
        tensors_changed_ = true;
    for (int role = kStates; role < kRoles; ++role)
        if (tensor.has(role) && (seen.device != tensor.views[role].device || !same_order(seen, tensor.views[role])))
            tensor.bound = false;  // `run` will return false, and the optimizer move the states
    param = std::move(seen);
    if (of_torch_) param.asked = Asked::kNothing;
    tensor.views[kGrad] = {};
    slot.arrays[kParam] = param.data;
    slot.size = param.size;
    slot.device = param.device;
    update_types(i);
}

// Look at a gradient that is not the array of the last step. It is at `moved` if it plainly differs in its address
// only.
void Plan::see_grad(size_t i, int flags, char* moved) {
    Tensor& tensor = tensors_[i];
    Slot& slot = slots_[i];
    View& grad = tensor.views[kGrad];
    const bool zeroed = flags & kWriteable;
    const Asked asked = of_torch_ ? Asked::kSigns : Asked::kAll;
    const bool is_for_one_number = slot.device == kHost && tensor.views[kParam].shape().empty();
    if (is_for_one_number && PyLong_CheckExact(grads_[i].ptr())) grads_[i] = py::float_(grads_[i]);
    bool has_moved = moved;
    if (!has_moved && Py_TYPE(grads_[i].ptr()) != ndarray_type) {  // what NumPy makes of it may be known
        grads_[i] = as_array(std::move(grads_[i]), grad_name(i), true);
        has_moved = tensor.has(kGrad) && (tensor.zeroable || !zeroed) && grad.has_moved(grads_[i], flags, &moved);
    }
    if (has_moved && reinterpret_cast<uintptr_t>(moved) % static_cast<uintptr_t>(kItemSize[grad.type()]) == 0) {
        grads_moved_ = grads_moved_ || grad.data != moved;
        grad.data = moved;
    } else {
        const View& param = tensor.views[kParam];
        grad = {};
        grad = look(grads_[i], grad_name(i), zeroed ? Use::kOverwritten : Use::kRead,
                    {&param, {}, kFloats, param_name(i), param.device, false, asked}, &foreign_);
        grad.asked = asked;
        tensor.zeroable = zeroed;
        tensor.axes = axes_of(param, grad);
        slot.grad_axes = tensor.axes.empty() ? nullptr : tensor.axes.data();
        slot.grad_axis_count = static_cast<int32_t>(tensor.axes.size());
        grads_changed_ = true;
        update_types(i);
    }
    slot.arrays[kGrad] = grad.data;
    disjoint_ = disjoint_ && !zeroed && !written_.find(grad);
}

// Whether a parameter without a gradient can have an average. What can be no parameter, such as an array of integers,
// has none.
bool Plan::can_average(size_t i) {
    try {
        params_[i] = as_array(py::object(params_[i]), param_name(i));
        look_at_param(i);
        return true;
    } catch (const py::type_error&) {
        return false;
    }
}

// Let go of a parameter that takes no part in the step: nothing is known of it any more.
void Plan::forget(size_t i) {
    tensors_[i].views[kParam] = {};
    slots_[i].arrays[kParam] = nullptr;
    slots_[i].size = 0;
    tensors_changed_ = true;
    disjoint_ = false;
    update_types(i);
}

// Check everything about every array, before the first write. Arrays that were seen last time are only recognised.
// Returns false if a tensor lacks what its step needs.
bool Plan::check_arrays() {
    const auto is_numpy = [](const py::object& array) { return Py_TYPE(array.ptr()) == ndarray_type; };
    const size_t n = tensors_.size();
    bool ready = true, all = true;  // whether all tensors take part
    size_t first = n;               // the first tensor that takes part
    for (size_t i = 0; i < n; ++i) {
        Tensor& tensor = tensors_[i];
        Slot& slot = slots_[i];
        View &param = tensor.views[kParam], &grad = tensor.views[kGrad];
        const Row row = rows_.empty() ? Row{averaged_[i]} : rows_[slot.row];
        const bool has_grad = !grads_[i].is_none() && !row.frozen;
        if (slot.has_grad != has_grad) grads_changed_ = true;
        slot.has_grad = has_grad;
        const bool is_still = tensor.has(kParam) && param.is_still(params_[i], kWriteable);
        if (!has_grad) {
            grad = {};
            if (!row.averages || (!is_still && !can_average(i))) {
                if (tensor.has(kParam) && !is_still) forget(i);
                all = false;
                continue;
            }
        }
        if (!is_still) see_param(i);
        if (first == n) first = i;
        if ((slot.device == kHost) != (slots_[first].device == kHost))
            refuse_device(param_name(i), slot.device, param_name(first), slots_[first].device);
        const int flags = kAligned | (row.zero_grad ? kWriteable : 0);
        const bool is_seen = tensor.has(kGrad) && (tensor.zeroable || !row.zero_grad);
        char* moved = nullptr;
        const bool is_known = has_grad && is_seen && grad.has_moved(grads_[i], flags, &moved);
        if (has_grad && !(is_known && moved == grad.data)) see_grad(i, flags, is_known ? moved : nullptr);
        if (has_grad && !is_numpy(params_[i]) && counts_writes(params_[i])) counting_.push_back(params_[i]);
        if (has_grad && row.zero_grad && !is_numpy(grads_[i]) && counts_writes(grads_[i]))
            counting_.push_back(grads_[i]);
        ready = ready && (has_grad ? tensor.ready : tensor.bound && tensor.has(kAverage));
    }
    for (size_t i = 0; i < n && first < n && !all; ++i) {
        const int expected = slots_[first].device;
        if (!slots_[i].has_grad && (slots_[i].device == kHost) != (expected == kHost)) forget(i);
        if (!tensors_[i].has(kParam)) slots_[i].device = expected;
    }
    if (!disjoint_) check_overlap();
    if (tree_.is_one_array()) check_single();
    return ready;
}

// Take the further arrays of gradients that are sums, which all lie in memory like their parameter.
void Plan::take_summands(py::object others) {
    if (others.is_none() && summands_.empty()) return;
    for (Slot& slot : slots_) {
        slot.summands = nullptr;
        slot.summand_count = 0;
    }
    summands_.assign(others.is_none() ? 0 : tensors_.size(), {});
    grads_changed_ = true;
    if (others.is_none()) return;
    const auto lists = py::cast<py::list>(others);
    if (lists.size() != tensors_.size())
        throw py::value_error("others has length " + std::to_string(lists.size()) + ", expected a list or None for " +
                              std::to_string(tensors_.size()) + " tensors");
    for (size_t i = 0; i < lists.size(); ++i) {
        Slot& slot = slots_[i];
        if (lists[i].is_none() || !slot.has_grad) continue;
        const View& grad = tensors_[i].views[kGrad];
        if (zeroes(i))
            throw py::value_error(grad_name(i).text() + " is the sum of several arrays, expected one with zero_grad");
        if (slot.grad_axes)
            throw py::value_error(grad_name(i).text() + " does not lie in memory like its parameter, expected it so");
        std::vector<Summand>& summands = summands_[i];
        summands = {{grad.data, grad.type()}};
        const Like like{&grad, grad.format, summed_in(computed_in(slot.types.param)), grad_name(i)};
        const Name name{"others", keys()[i].ptr()};
        for (py::handle array : py::cast<py::list>(lists[i])) {
            grads_.push_back(py::reinterpret_borrow<py::object>(array));
            const View view = look_at_summand(grads_.back(), name, like);
            if (const auto id = written_.find(view)) fusedstep::refuse_overlap(name, span_name(*id));
            summands.push_back({view.data, view.type()});
        }
        if (!contains(like.types, grad.type()))
            throw py::type_error(grad_name(i).text() + " has another type than sums for its parameter");
        if (summands.size() == 1) continue;
        slot.summands = summands.data();
        slot.summand_count = static_cast<int32_t>(summands.size());
    }
}

void Plan::check_overlap() {
    written_.clear();
    for (size_t i = 0; i < tensors_.size(); ++i)
        for (int role = 0; role < kRoles; ++role)
            if (role != kGrad || zeroes(i)) written_.add(tensors_[i].views[role], i * kRoles + role);
    if (const auto pair = written_.sort()) refuse_overlap(pair->first, pair->second);
    for (size_t i = 0; i < tensors_.size(); ++i) {
        if (zeroes(i)) continue;
        if (const auto id = written_.find(tensors_[i].views[kGrad])) refuse_overlap(i * kRoles + kGrad, *id);
    }
    disjoint_ = true;
}

void Plan::refuse_overlap(size_t a, size_t b) const {
    const bool tied = a % kRoles == kParam && b % kRoles == kParam;
    fusedstep::refuse_overlap(span_name(std::max(a, b)), span_name(std::min(a, b)),
                              tied ? "; of one array with two names, step one with the sum of both gradients" : "");
}

py::list Plan::check(py::object params, py::object grads, std::vector<bool> averaged) {
    Turn turn(*this);
    if (averaged.size() != tensors_.size()) throw py::value_error("check: expected a bool for each tensor");
    averaged_ = std::move(averaged);
    if (!fetch(params, grads))
        throw std::runtime_error("params changed while they were looked at, expected them to stay as they are");
    check_identity(params);
    check_arrays();
    py::list seen;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const bool has_grad = slots_[i].has_grad, takes_part = has_grad || (averaged_[i] && tensors_[i].has(kParam));
        seen.append(takes_part ? described(tensors_[i].views[kParam]) + py::make_tuple(has_grad)
                               : py::object(py::none()));
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
    disjoint_ = false;
    tensors_changed_ = true;
    const size_t state_count = rule_.state_count;
    for (size_t i = 0; i < n; ++i) {
        Tensor& tensor = tensors_[i];
        int64_t at = clock_of.at(i);
        if (at < 0 || at >= clocks.size()) throw py::index_error("bind: no such clock");
        slots_[i].clock = clock + at;
        slots_[i].noise_id = noise_ids.at(i);
        slots_[i].origin = first_elements[i];
        tensor.bound = tensor.has(kParam) && !kept[i].is_none();
        if (!tensor.bound) continue;
        py::tuple arrays = kept[i];
        const size_t array_count = state_count + 2;
        if (arrays.size() != array_count && arrays.size() != array_count + kShown)
            throw py::value_error("bind: wrong number of arrays");
        const View& param = tensor.views[kParam];
        Like like{&param, param.format, states_of(param.type()), param_name(i), kAnywhere};
        std::ranges::fill(slots_[i].shown, nullptr);
        Like one{nullptr, {kFloat32}, set_of(kFloat32, kFloat64), {}};
        for (size_t j = array_count; j < arrays.size(); ++j) {
            py::object array = arrays[j];
            if (array.is_none()) continue;
            const Name name{"counter", keys()[i].ptr()};
            array = as_array(std::move(array), name);
            const View seen = look(array, name, Use::kUpdated, one, &foreign_);
            if (seen.size != 1 || seen.device != param.device)
                throw py::value_error(name.text() + " has " + std::to_string(seen.size) + " elements " +
                                      device_text(seen.device) + ", expected one " + device_text(param.device));
            slots_[i].shown[j - array_count] = seen.data;
            slots_[i].shown_type = seen.type();
            one = {nullptr, seen.format, set_of(seen.type()), {}};
            held_.push_back(std::move(array));
        }
        for (size_t j = 0; j < array_count; ++j) {
            const int role =
                j < state_count ? kStates + static_cast<int>(j) : int(j == state_count ? kAverage : kMaster);
            py::object array = arrays[j];
            if (array.is_none()) continue;
            Name name = span_name(i * kRoles + role);
            if (role == kMaster) {
                const bool split = py::cast<int64_t>(array.attr("dtype").attr("itemsize")) == kItemSize[kUInt16];
                const Type master = split ? kUInt16 : kFloat32;
                if (!contains(params_of(master) & kNarrow, param.type())) {
                    tensor.bound = false;  // no step is made while master and parameter do not fit
                    continue;
                }
                name.state = split ? "remainder" : "master";
                like = {&param, {master}, set_of(master), param_name(i), kAnywhere};
            }
            array = as_array(std::move(array), name);
            View seen = look(array, name, Use::kUpdated, like, &foreign_);
            if (seen.device != param.device || !same_order(param, seen)) {  // the optimizer moves it before the step
                tensor.bound = false;
                break;
            }
            View& view = tensor.views[role] = std::move(seen);
            slots_[i].arrays[role] = view.data;
            like = {&param, view.format, set_of(view.type()), name, kAnywhere};  // further arrays have its type
            // The owner of the memory is kept too: NumPy resizes no array that somebody else refers to.
            held_.push_back(owner_of(array));
            held_.push_back(std::move(array));
        }
        update_types(i);
    }
}

}  // namespace fusedstep
