// The engine for GPUs: sessions over one or several of them, and steps without one.
#include <deque>
#include <mutex>

#include "engines/cuda/session.h"

namespace fusedstep::cuda {
namespace {

class Devices : public Session {
public:
    Devices(const RuleShape& rule, std::span<const int> devices, const Stream* ordered = nullptr) {
        for (size_t d = 0; d < devices.size(); ++d) {
            const OnDevice here(devices[d]);
            parts_.emplace_back(rule, devices[d], static_cast<int>(d), static_cast<int>(devices.size()), ordered);
        }
    }
    ~Devices() override {
        while (!parts_.empty()) {
            int before = 0;  // no errors: at exit, there may be no CUDA any more
            const bool known = cudaGetDevice(&before) == cudaSuccess;
            cudaSetDevice(parts_.back().device);
            parts_.pop_back();
            if (known) cudaSetDevice(before);
        }
    }

    void set_tensors(std::vector<Tensor> tensors, std::span<const Clock> clocks) override {
        each([&](Part& part, size_t) { part.set_tensors(tensors, clocks); });
    }
    void set_hypers(std::vector<Number> hypers) override {
        each([&](Part& part, size_t) { part.set_hypers(hypers); });
    }
    void set_gradients(std::span<const Gradient> gradients) override {
        each([&](Part& part, size_t) { part.set_gradients(gradients); });
    }
    void run(const Step& step) override {
        each([&](Part& part, size_t d) {
            part.begin(step.streams[d], step.captured);
            if (!step.mode.measures) return;
            part.square(step.streams[d]);
            if (d) part.between.record(step.streams[d]);
        });
        if (step.mode.measures) measure(step);
        each([&](Part& part, size_t d) {
            part.update(step, step.streams[d]);
            part.end(step.streams[d], step.captured);
        });
    }

    bool was_captured() const override { return parts_.front().was_captured(); }

    void wait() override {
        const std::lock_guard lock(reading_);
        each([](Part& part, size_t) { part.wait(); });
    }
    Found read(int64_t ticket) override {
        const std::lock_guard lock(reading_);
        const OnDevice here(parts_.front().device);
        return parts_.front().read(ticket);
    }
    void read_clocks(std::span<Clock> clocks) override {
        const std::lock_guard lock(reading_);
        const OnDevice here(parts_.front().device);
        parts_.front().read_clocks(clocks);
    }

private:
    template <class F>
    void each(F f) {
        for (size_t d = 0; d < parts_.size(); ++d) {
            const OnDevice here(parts_[d].device);
            f(parts_[d], d);
        }
    }

    // The first device adds up what all have found, and tells it to the others.
    void measure(const Step& step) {
        Part& first = parts_.front();
        {
            const OnDevice here(first.device);
            for (size_t d = 1; d < parts_.size(); ++d) {
                parts_[d].between.let_wait(step.streams[0]);
                first.collect(parts_[d], step.streams[0]);
            }
            first.measure(step, step.streams[0]);
            if (parts_.size() > 1) first.between.record(step.streams[0]);
        }
        for (size_t d = 1; d < parts_.size(); ++d) {
            const OnDevice here(parts_[d].device);
            first.between.let_wait(step.streams[d]);
            parts_[d].receive(first, step, step.streams[d]);
        }
    }

    std::mutex reading_;
    std::deque<Part> parts_;  // which stay where they are
};

bool captures(int device, Stream stream) {
    const OnDevice here(device);
    return is_capturing(stream);
}

std::unique_ptr<Session> open(const RuleShape& rule, std::span<const int> devices) {
    return std::make_unique<Devices>(rule, devices);
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

void run_once(const RuleShape& rule, std::vector<Tensor> tensors, std::span<const Gradient> gradients,
              std::vector<Number> hypers, std::span<const Clock> clocks, int device, const Step& step) {
    const int devices[] = {device};
    const OnDevice here(device);
    Devices session(rule, devices, &step.streams[0]);
    session.set_tensors(std::move(tensors), clocks);
    session.set_hypers(std::move(hypers));
    session.set_gradients(gradients);
    session.run(step);
}

}  // namespace

extern const Engine engine;
const Engine engine = {kLayout, open, device_of, order, mark, captures, run_once};

}  // namespace fusedstep::cuda
