// The steps of a plan whose arrays are on GPUs.
#include <algorithm>

#include "binding/plan.h"
#include "engines/cpu/dispatch.h"

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

// The clocks come back to the host, and the next step on GPUs tells them everything.
void Plan::close_session() {
    refresh();
    if (session_ && session_->was_captured()) captured_.push_back(session_);
    session_.reset();
    clocks_stale_ = false;
    tensors_changed_ = true;
}

void Plan::open_session(const cuda::Engine& engine) {
    close_session();
    const Kernel& kernel = kernel_of(rule_);
    std::shared_ptr<cuda::Session> session =
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
    session_ = std::move(session);
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
    int numbers_device = numbers_device_;
    cuda::Step step{};
    step.mode.grad_scale = number_of(grad_scale, {"grad_scale"}, &numbers_device, &foreign_);
    for (const py::object& number : live_)
        if (!is_cupy(number)) see_on_gpu(number, {"a hyperparameter"}, &foreign_);
    if (tensors_changed_) find_devices();
    if (numbers_device != kHost && (devices_.size() > 1 || numbers_device != devices_[0]))
        throw py::value_error("a hyperparameter or grad_scale is " + device_text(numbers_device) +
                              ", expected a number, or all of params there");
    const std::vector<cuda::Stream> streams = streams_of(stream);
    // Memory of CuPy comes from its current stream and returns to it.
    if (!stream.is_none()) foreign_.push_back({{}, devices_[0], current_stream(devices_[0])});
    StreamOrder order(engine, devices_, streams, std::move(foreign_));
    order.begin();
    step.captured = order.is_captured();
    if (tensors_changed_ || !session_) {
        if (step.captured)
            throw std::runtime_error("the stream is being captured, expected a step with these params before that");
        open_session(engine);
    }
    tensors_changed_ = true;  // until the GPUs have been told
    if (hypers_changed_) session_->set_hypers(numbers_);
    hypers_changed_ = false;
    if (grads_changed_) set_gradients();

    step.mode.gradients = gradient_count_;
    step.mode.measures = measures_;
    step.mode.skips_nonfinite = skip_nonfinite_;
    step.body = cuda::kShortBody;
    for (const Row& row : rows_) step.body = std::max(step.body, body_of(row.variant));
    step.streams = streams;
    int64_t& tickets = step.captured ? captured_tickets_ : tickets_;
    step.ticket = tickets % cuda::kTickets + (step.captured ? cuda::kTickets : 0);
    {
        py::gil_scoped_release release;  // where the queue of a stream is full, this waits
        session_->run(step);
    }
    tensors_changed_ = false;
    clocks_stale_ = clocks_stale_ || session_->was_captured() || skip_nonfinite_ || !live_.empty();
    derive(1);
    order.end();
    if (!measures_) return py::bool_(true);
    ++tickets;
    return py::cast(Ticket(session_, step.ticket));
}

py::tuple Ticket::read() const {
    cuda::Found found;
    {
        py::gil_scoped_release release;
        found = session_->read(number_);
    }
    if (found.offender == cuda::kNobody) return py::make_tuple(found.norm, py::none());
    return py::make_tuple(found.norm, found.offender);
}

void Plan::wait() {
    const std::shared_ptr<cuda::Session> session = session_;
    py::gil_scoped_release release;
    if (session) session->wait();
}

void Plan::refresh() {
    if (!clocks_stale_ || !session_) return;
    const cuda::Engine& engine = gpu_engine({"params"});
    for (int device : devices_)
        if (engine.is_capturing(device, current_stream(device)))
            throw std::runtime_error(
                "the step count is on a GPU, and cannot be read while its stream is captured; a number that depends on "
                "it, as a schedule does, must be on the GPU too");
    std::vector<Clock> clocks(tensors_.size());
    const std::shared_ptr<cuda::Session> session = session_;
    {
        py::gil_scoped_release release;
        session->read_clocks(clocks);
    }
    for (size_t i = 0; i < tensors_.size(); ++i) *tensors_[i].clock = clocks[i];
    clocks_stale_ = session->was_captured();
}

}  // namespace fusedstep
