#include "binding/functional.h"

#include <algorithm>
#include <array>

#include "binding/arrays/exchange.h"
#include "binding/arrays/gpu.h"
#include "binding/arrays/layout.h"
#include "binding/arrays/overlap.h"
#include "binding/gil.h"
#include "element/around.h"
#include "element/float_mode.h"
#include "engine.h"

namespace fusedstep {
namespace {

constexpr int64_t kMostUpdates = int64_t(1) << 62;

bool is_list(py::handle object) {
    return PyList_Check(object.ptr()) || PyTuple_Check(object.ptr());
}

int64_t checked_t(const py::object& t) {
    const char* expected = ", expected the number of this update, an integer from 1 to 2**62";
    if (!PyIndex_Check(t.ptr()) || PyBool_Check(t.ptr()))
        throw py::type_error("t is " + std::string(py::repr(t)) + expected);
    const int64_t number = PyNumber_AsSsize_t(t.ptr(), nullptr);  // clipped beyond 64 bits, so refused below
    if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (number < 1 || number > kMostUpdates) throw py::value_error("t is " + std::string(py::repr(t)) + expected);
    return number;
}

// The step is made in the current stream of a library, or else of CuPy.
void run(const RuleInfo& rule, std::span<const Slot> slots, std::span<const Number> hypers, double grad_scale,
         int device, const dlpack::Exchange* library, Foreigners foreign) {
    Request request;
    request.grad_scale.value = grad_scale;
    if (device != kHost) {
        const Engine& engine = gpu_engine({"p"});
        const Stream stream = library ? current_stream(*library, device) : current_stream(device);
        request.streams = {&stream, 1};
        StreamOrder order(engine.streams, {&device, 1}, request.streams, std::move(foreign));
        order.begin();
        engine.run_once(rule, slots, hypers, request, device);
        order.end();
        return;
    }
    int64_t bytes = 0;
    for (const Slot& slot : slots) bytes += slot.size * kItemSize[slot.types.param] * (3 + 2 * rule.state_count);
    without_gil(bytes, [&] { host_engine().run_once(rule, slots, hypers, request, device); });
}

}  // namespace

py::tuple update(const RuleInfo& rule, py::tuple arrays, py::bytes hypers, py::object t, py::tuple memory) {
    const size_t roles = kStates + rule.state_count;
    const std::string_view packed = hypers;
    const size_t memory_count = py::len(memory);
    if (arrays.size() != roles || packed.size() != (rule.hyper_count + 1) * sizeof(double) || memory_count > kMaxMemory)
        throw py::type_error("update: wrong number of arrays, hyperparameters or numbers in memory");
    std::array<double, kMaxHypers + 1> values;
    std::copy(packed.begin(), packed.end(), reinterpret_cast<char*>(values.data()));
    const auto& around = *reinterpret_cast<const Around::Hyper*>(values.data() + rule.own_hyper_count);
    if (around.averages() || around.master != 0)
        throw py::value_error("update: an average or a master is asked for, which has no array here");
    Clock clock{checked_t(t) - 1, 0, {}};
    for (size_t i = 0; i < memory_count; ++i) clock.memory[i] = py::cast<double>(memory[i]);

    const bool many = is_list(arrays[0]);
    const size_t count = many ? py::len(arrays[0]) : 1;
    auto role_name = [&](size_t role) { return role == 0 ? "p" : role == 1 ? "g" : word(rule.states, role - 2); };
    // Lists are copied before anything is looked at, so that nobody can change them meanwhile.
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
    for (size_t id = 0; id < held.size(); ++id) held[id] = as_array(std::move(held[id]), name(id), id % roles == kGrad);

    WrittenMemory written;
    std::vector<Slot> slots(count);
    std::vector<Clock> clocks(count, clock);
    struct Gradient {
        View view;
        std::vector<Axis> axes;
    };
    std::vector<Gradient> grads(count);
    Foreigners foreign;
    int device = kHost;                         // the device of all arrays
    const dlpack::Exchange* library = nullptr;  // of the first parameter
    const bool zeroes = around.zero_grad != 0;
    for (size_t i = 0; i < count; ++i) {
        Slot& slot = slots[i];
        const View p = look(held[i * roles], name(i * roles), Use::kUpdated, {}, &foreign);
        if (i == 0) device = p.device, library = p.exchange;
        if (p.device != device) refuse_device(name(i * roles), p.device, name(0), device);
        written.add(p, i * roles);
        View& g = grads[i].view;
        std::vector<Axis>& axes = grads[i].axes;
        g = look(held[i * roles + kGrad], name(i * roles + kGrad), zeroes ? Use::kOverwritten : Use::kRead,
                 {&p, {}, kFloats, name(i * roles), device}, &foreign);
        if (zeroes) written.add(g, i * roles + kGrad);
        axes = axes_of(p, g);
        slot.arrays[kParam] = p.data;
        slot.arrays[kGrad] = g.data;
        slot.grad_axes = axes.empty() ? nullptr : axes.data();
        slot.grad_axis_count = static_cast<int32_t>(axes.size());
        slot.size = p.size;
        slot.noise_id = i;
        slot.clock = &clocks[i];
        slot.device = p.device;
        slot.has_grad = true;
        slot.types = {p.type(), g.type(), p.type()};
        Like like{&p, p.format, states_of(p.type()), name(i * roles), device, true};
        for (size_t role = kStates; role < roles; ++role) {
            const size_t id = i * roles + role;
            const View state = look(held[id], name(id), Use::kUpdated, like, &foreign);
            slot.arrays[role] = state.data;
            slot.types.state = state.type();
            like = {&p, state.format, set_of(state.type()), name(id), device, true};  // further states have its type
            written.add(state, id);
        }
    }
    const auto refuse = [&](size_t a, size_t b) { refuse_overlap(name(std::max(a, b)), name(std::min(a, b))); };
    if (const auto pair = written.sort()) refuse(pair->first, pair->second);
    for (size_t i = 0; i < count && !zeroes; ++i)
        if (const auto id = written.find(grads[i].view)) refuse(i * roles + kGrad, *id);

    std::vector<py::object> counting;
    for (size_t id = 0; id < held.size(); ++id)
        if ((id % roles != kGrad || zeroes) && counts_writes(held[id])) counting.push_back(held[id]);
    count_writes(counting);
    if (library && std::ranges::any_of(held, is_cupy)) foreign.push_back({{}, device, current_stream(device)});
    std::array<Number, kMaxHypers> row;
    for (int j = 0; j < rule.hyper_count; ++j) row[j] = {values[j], nullptr};
    run(rule, slots, {row.data(), static_cast<size_t>(rule.hyper_count)}, values[rule.hyper_count], device, library,
        std::move(foreign));

    if (count == 0) {  // without a tensor, no session has advanced the clock
        FloatMode mode;
        mode.ieee();
        Derived unused;
        rule.derive(rule, values.data(), clock, unused);
    }
    py::tuple after(memory_count);
    for (size_t i = 0; i < memory_count; ++i) after[i] = (count ? clocks[0] : clock).memory[i];
    return after;
}

}  // namespace fusedstep
