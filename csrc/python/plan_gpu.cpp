// The steps of a plan whose arrays are on GPUs.
#include <algorithm>

#include "../cpu/dispatch.h"
#include "plan.h"

namespace fusedstep {

// Of each device, the stream to use.
std::vector<cuda::Stream> Plan::streams_of(py::handle stream) const {
    if (stream.is_none()) {
        std::vector<cuda::Stream> streams;
        for (int device : devices_) streams.push_back(current_stream(device));
        return streams;
    }
    if (devices_.size() > 1)
        throw py::value_error("stream is given, expected None with params on " + std::to_string(devices_.size()) +
                              " GPUs, each of which has its own current stream");
    return {stream_of(stream)};
}

void Plan::find_devices() {
    devices_.clear();
    for (const Tensor& tensor : tensors_)
        if (std::ranges::find(devices_, tensor.views[kParam].device) == devices_.end())
            devices_.push_back(tensor.views[kParam].device);
}

// Tell the GPUs of all tensors anew, and how far they are.
void Plan::open_session(const cuda::Engine& engine) {
    refresh();
    const Kernel& kernel = kernel_of(rule_);
    std::unique_ptr<cuda::Session> session =
        engine.open({rule_, kernel.hyper_count, kernel.rule_hyper_count}, devices_);
    std::vector<cuda::Tensor> tensors;
    std::vector<Clock> clocks;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const View& param = tensors_[i].views[kParam];
        const auto index = std::ranges::find(devices_, param.device) - devices_.begin();
        tensors.push_back(tensor_on_gpu(slots_[i], param.size, static_cast<int32_t>(index)));
        tensors.back().number = tensors_[i].number;
        clocks.push_back(*tensors_[i].clock);
    }
    session->set_tensors(std::move(tensors), clocks);
    if (session_ && was_captured_) captured_.push_back(std::move(session_));
    session_ = std::move(session);
    was_captured_ = tensors_changed_ = false;
    grads_changed_ = hypers_changed_ = true;
}

void Plan::set_gradients() {
    std::vector<cuda::Gradient> gradients;
    int32_t place = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const auto row = static_cast<int32_t>(tensors_[i].row);
        gradients.push_back(gradient_on_gpu(slots_[i], tensors_[i].takes_part ? place++ : -1, row));
    }
    session_->set_gradients(gradients);
    gradient_count_ = place;
    grads_changed_ = false;
}

py::object Plan::run_on_gpu(py::handle grad_scale, py::handle stream) {
    const cuda::Engine& engine = gpu_engine(param_name(0));
    int scale_device = numbers_device_;
    cuda::Step step{};
    step.mode.grad_scale = number_of(grad_scale, {"grad_scale"}, &scale_device);
    if (tensors_changed_) find_devices();
    for (int device : {numbers_device_, scale_device})
        if (device != kHost && (devices_.size() > 1 || device != devices_[0]))
            throw py::value_error("a hyperparameter or grad_scale is " + place_text(device) +
                                  ", expected a number, or all of params there");
    const std::vector<cuda::Stream> streams = streams_of(stream);
    const bool captured = std::ranges::any_of(streams, engine.is_capturing);
    if (captured && (tensors_changed_ || !session_))
        throw std::runtime_error("the stream is being captured, expected a step with these params before that");
    if (tensors_changed_ || !session_) open_session(engine);
    if (hypers_changed_) session_->set_hypers(numbers_);
    hypers_changed_ = false;
    if (grads_changed_) set_gradients();

    step.mode.gradients = gradient_count_;
    step.mode.measures = measures_;
    step.mode.skips_nonfinite = skip_nonfinite_;
    step.weight = cuda::kLight;
    for (const Row& row : rows_) step.weight = std::max(step.weight, weight_of(row.variant));
    step.streams = streams;
    step.ticket = tickets_ % cuda::kTickets;

    // Memory of CuPy comes from its current stream and returns to it; that of others may have a stream of their own.
    if (!captured) {
        in_flight_.sweep();
        if (!stream.is_none()) others_.emplace_back(devices_[0], current_stream(devices_[0]));
    }
    auto order_others = [&](bool before) {
        for (auto [device, other] : others_) {
            const cuda::Stream own = streams[std::ranges::find(devices_, device) - devices_.begin()];
            if (own != other && !captured) before ? engine.order(device, other, own) : engine.order(device, own, other);
        }
    };
    order_others(true);
    try {
        session_->run(step);
    } catch (...) {
        tensors_changed_ = true;  // what the GPU knows is not known any more: the next step tells it all again
        throw;
    }
    order_others(false);
    if (!captured) keep_foreign(engine, streams);

    was_captured_ = was_captured_ || captured;
    clocks_stale_ = clocks_stale_ || captured || skip_nonfinite_ || !live_.empty();
    derive(1);
    if (!measures_) return py::bool_(true);
    return py::int_(tickets_++);
}

// Arrays that are not CuPy's live until their step is done; those of CuPy return to the stream that made it.
void Plan::keep_foreign(const cuda::Engine& engine, const std::vector<cuda::Stream>& streams) {
    for (size_t d = 0; d < devices_.size(); ++d) {
        std::vector<py::object> arrays;
        for (size_t i = 0; i < tensors_.size(); ++i) {
            if (tensors_[i].views[kParam].device != devices_[d]) continue;
            for (const py::object& array : {params_[i], grads_[i]})
                if (!array.is_none() && !is_cupy(array)) arrays.push_back(array);
        }
        in_flight_.add(engine, devices_[d], streams[d], std::move(arrays));
    }
}

py::tuple Plan::read(int64_t ticket) {
    Turn turn(*this);
    cuda::Found found;
    {
        py::gil_scoped_release release;
        found = session_->read(ticket % cuda::kTickets);
    }
    if (found.offender == cuda::kNobody) return py::make_tuple(found.norm, py::none());
    return py::make_tuple(found.norm, found.offender);
}

void Plan::refresh() {
    if (!clocks_stale_ || !session_) return;
    std::vector<Clock> clocks(tensors_.size());
    session_->read_clocks(clocks);
    for (size_t i = 0; i < tensors_.size(); ++i) *tensors_[i].clock = clocks[i];
    clocks_stale_ = was_captured_;
}

}  // namespace fusedstep
