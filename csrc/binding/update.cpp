#include "binding/update.h"

#include <algorithm>

#include "binding/gpu.h"
#include "element/around.h"
#include "element/float_mode.h"
#include "element/philox.h"
#include "engines/cpu/dispatch.h"

namespace fusedstep {
namespace {

constexpr int64_t kBytesToReleaseGil = 256 << 10;  // some ten microseconds of work

bool is_list(py::handle object) {
    return PyList_Check(object.ptr()) || PyTuple_Check(object.ptr());
}

// Long work lets other Python threads run.
template <class Work>
void without_gil(int64_t bytes, Work work) {
    if (bytes < kBytesToReleaseGil) return work();
    py::gil_scoped_release release;
    work();
}

// The same on a GPU: what it needs to know goes there with the step.
void run_on_gpu(int rule, const std::vector<Slot>& slots, const double* values, const Clock& clock, int device,
                Foreigners foreign) {
    const Kernel& kernel = kernel_of(rule);
    const auto& around = *reinterpret_cast<const Around::Hyper*>(values + kernel.rule_hyper_count);
    const cuda::Engine& engine = gpu_engine({"p"});
    const cuda::Stream stream = current_stream(device);
    std::vector<cuda::Tensor> tensors;
    std::vector<cuda::Gradient> gradients;
    for (size_t i = 0; i < slots.size(); ++i) {
        tensors.push_back(tensor_on_gpu(slots[i], slots[i].size, 0));
        tensors.back().number = i;
        gradients.push_back(gradient_on_gpu(slots[i], static_cast<int32_t>(i), 0));
    }
    std::vector<cuda::Number> numbers;
    for (int j = 0; j < kernel.hyper_count; ++j) numbers.push_back({values[j], nullptr});
    cuda::Step step{};
    step.mode = {{values[kernel.hyper_count], nullptr}, static_cast<int64_t>(slots.size()), around.measures(), false};
    step.body = body_of(Around::variant(around));
    step.streams = {&stream, 1};

    StreamOrder order(engine, {&device, 1}, step.streams, std::move(foreign));
    order.begin();
    engine.run_once({rule, kernel.hyper_count, kernel.rule_hyper_count}, std::move(tensors), gradients,
                    std::move(numbers), std::vector<Clock>(slots.size(), clock), device, step);
    order.end();
}

}  // namespace

Measure measure(const Kernel& kernel, const std::vector<Slot>& slots, const std::vector<const double*>& hypers,
                double grad_scale, bool skip_nonfinite) {
    auto around = [&](size_t i) -> const Around::Hyper& {
        return *reinterpret_cast<const Around::Hyper*>(hypers[i] + kernel.rule_hyper_count);
    };
    int64_t bytes = 0;
    for (const Slot& slot : slots) bytes += slot.size * kItemSize[slot.types.grad];
    std::vector<double> sums(slots.size()), shares(slots.size());
    without_gil(bytes, [&] { sum_squares(slots.data(), slots.size(), sums.data()); });

    FloatMode mode;
    mode.ieee();
    double largest = 0;
    for (size_t i = 0; i < slots.size(); ++i) largest = larger(largest, magnitude(around(i).grad_scale));
    for (size_t i = 0; i < slots.size(); ++i) shares[i] = Around::share(around(i).grad_scale, largest, sums[i]);
    Measure found;
    found.norm = Around::norm(add_up(shares.data(), shares.size()), largest * grad_scale);
    for (size_t i = 0; i < slots.size(); ++i) {
        if (skip_nonfinite && found.offender < 0 && !is_finite(slots[i], sums[i])) found.offender = i;
        found.scales.push_back(Around::scale(around(i), grad_scale, sums[i], found.norm));
    }
    return found;
}

void run_slots(int rule, const std::vector<Slot>& slots, const Derived* groups) {
    int64_t bytes = 0;
    for (const Slot& slot : slots) bytes += slot.size * slot.traffic;
    without_gil(bytes, [&] { run_step(rule, slots.data(), slots.size(), groups, bytes); });
}

double update(int rule, py::tuple arrays, py::bytes hypers, py::object t, double product) {
    const Kernel& kernel = kernel_of(rule);
    const size_t roles = 2 + kernel.state_count;
    double values[kMaxHypers + 1];
    std::string_view packed = hypers;
    if (arrays.size() != roles || packed.size() != (kernel.hyper_count + 1) * sizeof(double))
        throw py::type_error("update: wrong number of arrays or hyperparameters");
    std::copy(packed.begin(), packed.end(), reinterpret_cast<char*>(values));
    const char* expected_t = ", expected the number of this update, an integer from 1 to 2**62";
    if (!PyIndex_Check(t.ptr()) || PyBool_Check(t.ptr()))
        throw py::type_error("t is " + std::string(py::repr(t)) + expected_t);
    const int64_t number = PyNumber_AsSsize_t(t.ptr(), nullptr);  // clipped where it is too large
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (number < 1 || number > int64_t(1) << 62) throw py::value_error("t is " + std::string(py::repr(t)) + expected_t);
    Clock clock{number - 1, product, 0};
    const auto& around = *reinterpret_cast<const Around::Hyper*>(values + kernel.rule_hyper_count);
    const double grad_scale = values[kernel.hyper_count];

    const bool many = is_list(arrays[0]);
    const size_t count = many ? py::len(arrays[0]) : 1;
    auto role_name = [&](size_t role) { return role == 0 ? "p" : role == 1 ? "g" : word(kernel.states, role - 2); };
    // Lists are read first, into memory of our own: nobody can change them underneath us.
    std::vector<py::object> held(count * roles), keys(many ? count : 0);
    for (size_t role = 0; role < roles; ++role) {
        if (!many) {
            held[role] = arrays[role];
            continue;
        }
        if (!is_list(arrays[role]))
            throw py::type_error(std::string(role_name(role)) + " is no list, expected a list of arrays like p");
        py::tuple column(arrays[role]);
        if (column.size() != count)
            throw py::value_error(std::string(role_name(role)) + " has " + std::to_string(column.size()) +
                                  " arrays, expected " + std::to_string(count) + " like p");
        for (size_t i = 0; i < count; ++i) held[i * roles + role] = column[i];
    }
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = py::int_(i);
    auto name = [&](size_t id) { return Name{role_name(id % roles), many ? keys[id / roles] : py::handle()}; };
    for (size_t id = 0; id < held.size(); ++id) held[id] = as_array(std::move(held[id]), name(id));

    std::vector<Span> spans;
    spans.reserve(held.size());
    std::vector<Slot> slots(count);
    Foreigners foreign;
    int device = kHost;  // of all of them
    for (size_t i = 0; i < count; ++i) {
        Slot& slot = slots[i];
        View p = look(held[i * roles], name(i * roles), true, nullptr, &foreign);
        if (i == 0) device = p.device;
        if (p.device != device) refuse_device(name(i * roles), p.device, name(0), device);
        Like like{p.shape, p.type, grads_of(p.type), name(i * roles), device};
        slot.arrays[kParam] = p.data;
        slot.size = p.size;
        slot.scale = Around::scale(around, grad_scale);
        add_span(spans, p, i * roles);
        Types types{p.type, p.type, p.type};
        for (size_t role = 1; role < roles; ++role) {
            size_t id = i * roles + role;
            View view = look(held[id], name(id), role > 1 || around.zero_grad != 0, &like, &foreign);
            if (role == 1) {
                slot.arrays[kGrad] = view.data;
                types.grad = view.type;
                like.types = states_of(p.type);
            } else {
                slot.arrays[role] = view.data;
                like = {p.shape, view.type, among(view.type), name(id), device};  // the others are of its type
                types.state = view.type;
            }
            add_span(spans, view, id);
        }
        slot.become(types, kernel.state_count);
        if (around.rounding_stochastic != 0) slot.noise = noise_key(static_cast<uint64_t>(around.seed), number, i);
    }
    sort(spans);
    auto [a, b] = find_overlap(spans, {});
    if (a) refuse_overlap(name(std::max(a->id, b->id)), name(std::min(a->id, b->id)));

    if (device != kHost) {
        run_on_gpu(rule, slots, values, clock, device, std::move(foreign));
        Derived group{};
        FloatMode mode;
        mode.ieee();
        kernel.derive(values, clock, group);
        return clock.product;
    }
    if (around.measures()) {
        Measure found = measure(kernel, slots, std::vector<const double*>(count, values), grad_scale, false);
        for (size_t i = 0; i < count; ++i) slots[i].scale = found.scales[i];
    }
    Derived group{};
    {
        FloatMode mode;
        mode.ieee();
        kernel.derive(values, clock, group);
    }
    run_slots(rule, slots, &group);
    return clock.product;
}

}  // namespace fusedstep
