// The engine for GPUs: sessions on one or several devices, and single steps without a session.
#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <stdexcept>

#include "element/float_mode.h"
#include "engine.h"
#include "engines/cuda/device.h"
#include "programs/made.h"
#include "rules/all.h"
#include "rules/rows.h"

namespace fusedstep::cuda {
namespace {

// Elements that a lane reads at once, where all arrays of a tensor are aligned alike.
int64_t vector_length(Type param) {
    return param == kFloat64 ? 2 : 4;
}

// Number of leading elements of an array before the first one at a vector boundary.
int8_t head_of(const void* data, Type type, Type param) {
    if (type == kTypes) return 0;
    const int64_t vector = vector_length(param);
    const auto element = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) / kItemSize[type]);
    return static_cast<int8_t>((vector - element % vector) % vector);
}

Tensor tensor_of(const Slot& slot, int32_t device) {
    Tensor tensor{};
    std::copy(slot.arrays, slot.arrays + kRoles, tensor.arrays);
    tensor.arrays[kGrad] = nullptr;
    tensor.size = slot.size;
    tensor.origin = slot.origin;
    tensor.noise_id = slot.noise_id;
    std::copy(slot.shown, slot.shown + kShown, tensor.shown);
    tensor.shown_type = slot.shown_type;
    tensor.device = device;
    tensor.param = slot.types.param;
    tensor.state = slot.types.state;
    tensor.master = slot.types.master;
    tensor.head = head_of(slot.arrays[kParam], tensor.param, tensor.param);
    for (int role = kStates; role < kRoles; ++role) {
        const Type type = role == kMaster ? tensor.master : tensor.state;
        if (slot.arrays[role] && head_of(slot.arrays[role], type, tensor.param) != tensor.head)
            tensor.head = kScattered;
    }
    return tensor;
}

// What the device is told of a gradient; its axes are appended to `axes`.
Gradient gradient_of(const Slot& slot, int32_t order, std::vector<Axis>& axes) {
    const bool gathers = slot.has_grad && is_gathered(slot);
    Gradient gradient{};  // zeroes the padding too: gradients are compared byte by byte
    gradient.data = slot.arrays[kGrad];
    gradient.order = order;
    gradient.row = slot.row;
    gradient.axis_count = kNeighbours;
    if (gathers) {
        gradient.first_axis = static_cast<int32_t>(axes.size());
        gradient.axis_count = static_cast<int8_t>(slot.grad_axes ? slot.grad_axis_count : 0);
        axes.insert(axes.end(), slot.grad_axes, slot.grad_axes + gradient.axis_count);
    }
    gradient.type = slot.types.grad;
    gradient.head = head_of(gradient.data, gradient.type, slot.types.param);
    Types types = slot.types;
    if (!slot.has_grad) types.grad = types.param;
    gradient.loop = loop_of(types, gathers);
    return gradient;
}

class GpuSession final : public Session {
public:
    // A session that makes only one step may be given its stream as `ordered`.
    GpuSession(const RuleInfo& rule, std::span<const int> devices, const Stream* ordered = nullptr) : rows_(rule) {
        for (size_t d = 0; d < devices.size(); ++d) {
            const OnDevice here(devices[d]);
            devices_.emplace_back(rule, devices[d], static_cast<int>(d), static_cast<int>(devices.size()), ordered);
        }
    }
    ~GpuSession() override {
        while (!devices_.empty()) {
            int before = 0;  // errors are ignored: at exit, there may be no CUDA any more
            const bool known = cudaGetDevice(&before) == cudaSuccess;
            cudaSetDevice(devices_.back().number);
            devices_.pop_back();
            if (known) cudaSetDevice(before);
        }
    }

    void set_tensors(std::span<const Slot> slots) override {
        slots_ = slots;
        rows_.reserve(slots.size());
        std::vector<Tensor> tensors;
        std::vector<Clock> clocks;
        for (const Slot& slot : slots) {
            const auto device = std::ranges::find(devices_, slot.device, &Device::number) - devices_.begin();
            tensors.push_back(tensor_of(slot, static_cast<int32_t>(device)));
            clocks.push_back(*slot.clock);
        }
        each([&](Device& device, size_t) { device.set_tensors(tensors, clocks); });
        set_gradients();
    }
    void set_gradients() override {
        std::vector<Gradient> gradients;
        std::vector<Axis> axes;
        gradient_count_ = 0;
        for (const Slot& slot : slots_) {
            gradients.push_back(gradient_of(slot, slot.has_grad ? gradient_count_ : -1, axes));
            gradient_count_ += slot.has_grad;
        }
        each([&](Device& device, size_t) { device.set_gradients(gradients, axes); });
    }
    void set_hypers(std::span<const Number> table) override {
        rows_.set(table);
        reads_device_ = std::ranges::any_of(table, [](const Number& number) { return number.at; });
        each([&](Device& device, size_t) { device.set_hypers(table); });
    }

    Outcome run(const Request& request) override {
        const bool measures = rows_.measures() || request.skips_nonfinite;
        int64_t& tickets = request.captured ? captured_tickets_ : tickets_;
        const bool is_short = rows_.variant() <= kDecayed && !request.measures_updates;
        const Step step{{request.grad_scale, request.loss_scale, request.skip, gradient_count_, measures,
                         request.skips_nonfinite, request.measures_updates},
                        is_short ? kShortBody : kFullBody,
                        std::ranges::any_of(slots_, [&](const Slot& slot) { return rows_.averages(slot); }),
                        request.captured,
                        tickets % kTickets + (request.captured ? kTickets : 0)};
        const bool was_stale = stale_;
        make(step, request.streams);
        if (request.skip.at || request.skip.value == 0) advance_clocks();
        // Last: another thread may have read clocks since the step was launched, before the host's copy was advanced.
        if (was_stale || was_captured() || request.skips_nonfinite || request.skip.at || reads_device_) stale_ = true;
        if (!measures && !request.measures_updates) return Done();
        ++tickets;
        return Ticket(step.ticket);
    }
    // As if a step were always long: it waits where the queue of a stream is full.
    int64_t traffic() const override { return INT64_MAX; }

    void wait() override {
        const std::lock_guard lock(reading_);
        each([](Device& device, size_t) { device.wait(); });
    }
    Finding read(Ticket ticket) override {
        const std::lock_guard lock(reading_);
        const OnDevice here(devices_.front().number);
        return devices_.front().read(ticket);
    }
    bool is_captured(Ticket ticket) const override { return ticket >= kTickets; }
    bool was_captured() const override { return devices_.front().was_captured(); }

    bool has_stale_clocks() const override { return stale_; }
    void read_clocks(std::span<Clock> clocks) override {
        const std::lock_guard lock(reading_);
        stale_ = was_captured();  // before the clocks are read: a step that begins meanwhile makes them stale again
        try {
            const OnDevice here(devices_.front().number);
            devices_.front().read_clocks(clocks);
        } catch (...) {
            stale_ = true;
            throw;
        }
    }

private:
    // Call f(device, index) with each device as the current one.
    template <class F>
    void each(F f) {
        for (size_t d = 0; d < devices_.size(); ++d) {
            const OnDevice here(devices_[d].number);
            f(devices_[d], d);
        }
    }

    void make(const Step& step, std::span<const Stream> streams) {
        each([&](Device& device, size_t d) {
            device.begin(streams[d], step.captured);
            if (!step.mode.measures) return;
            device.square(streams[d]);
            if (d) device.between.record(streams[d]);
        });
        if (step.mode.measures) measure(step, streams);
        each([&](Device& device, size_t d) {
            device.update(step, streams[d]);
            if (step.mode.measures_updates && d) device.between.record(streams[d]);
        });
        if (step.mode.measures_updates) measure_updates(step, streams);
        each([&](Device& device, size_t d) { device.end(streams[d], step.captured); });
    }

    // Let the first device have the sums of all devices, which have been recorded, and call f(first) with them.
    template <class F>
    void collect(std::span<const Stream> streams, F f) {
        Device& first = devices_.front();
        const OnDevice here(first.number);
        for (size_t d = 1; d < devices_.size(); ++d) {
            devices_[d].between.let_wait(streams[0]);
            first.collect(devices_[d], streams[0]);
        }
        f(first);
        if (devices_.size() > 1) first.between.record(streams[0]);
    }

    // Let the first device add up the sums of all devices, and copy the finding to the others.
    void measure(const Step& step, std::span<const Stream> streams) {
        collect(streams, [&](Device& first) { first.measure(step, streams[0]); });
        Device& first = devices_.front();
        for (size_t d = 1; d < devices_.size(); ++d) {
            const OnDevice here(devices_[d].number);
            first.between.let_wait(streams[d]);
            devices_[d].receive(first, step, streams[d]);
        }
    }

    // The same with updates, whose norm other devices need not know: they wait until their sums have been read.
    void measure_updates(const Step& step, std::span<const Stream> streams) {
        collect(streams, [&](Device& first) { first.measure_updates(step, streams[0]); });
        for (size_t d = 1; d < devices_.size(); ++d) {
            const OnDevice here(devices_[d].number);
            devices_.front().between.let_wait(streams[d]);
        }
    }

    // Advance the host's copy of the clocks. The scalars that are derived meanwhile are not used.
    void advance_clocks() {
        FloatMode mode;
        mode.ieee();
        rows_.begin();
        for (const Slot& slot : slots_)
            if (slot.has_grad)
                rows_.advance(slot);
            else if (rows_.averages(slot))
                rows_.average(slot);
    }

    std::mutex reading_;
    std::deque<Device> devices_;  // a deque, since a device cannot be moved
    std::span<const Slot> slots_;
    Rows rows_;
    int32_t gradient_count_ = 0;
    bool reads_device_ = false;  // whether a hyperparameter is on a device
    // Whether the host's clocks may be wrong, after steps that were skipped or in a graph.
    std::atomic<bool> stale_ = false;
    int64_t tickets_ = 0, captured_tickets_ = 0;
};

bool captures(int device, Stream stream) {
    const OnDevice here(device);
    return is_capturing(stream);
}

std::unique_ptr<Session> open(const RuleInfo& rule, std::span<const int> devices) {
    return std::make_unique<GpuSession>(rule, devices);
}

int device_of(const void* pointer) {
    cudaPointerAttributes attributes;
    check(cudaPointerGetAttributes(&attributes, pointer), "asking where an array lies");
    return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged ? attributes.device
                                                                                               : kHost;
}

void order(int device, Stream earlier, Stream later) {
    const OnDevice here(device);
    Event event;
    event.record(earlier);
    event.let_wait(later);
}

class Reached : public Mark {
public:
    Reached(int device, Stream stream) : device_(device) { event_.record(stream); }
    bool is_reached() override {
        const OnDevice here(device_);
        return event_.is_reached();
    }

private:
    const int device_;
    Event event_;
};

std::unique_ptr<Mark> mark(int device, Stream stream) {
    const OnDevice here(device);
    return std::make_unique<Reached>(device, stream);
}

void run_once(const RuleInfo& rule, std::span<const Slot> slots, std::span<const Number> hypers, const Request& request,
              int device) {
    const OnDevice here(device);
    GpuSession session(rule, {&device, 1}, &request.streams[0]);
    session.set_tensors(slots);
    session.set_hypers(hypers);
    session.run(request);
}

}  // namespace

extern const Engine engine;
const Engine engine = {layout_of({FUSEDSTEP_RULES(FUSEDSTEP_NAMES) FUSEDSTEP_STEP_NAMES Around::hypers}, sizeof(Made)),
                       open,
                       run_once,
                       {device_of, order, mark, captures}};

}  // namespace fusedstep::cuda
