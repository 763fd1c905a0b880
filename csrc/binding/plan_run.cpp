// The steps of a plan: what an engine is told, and what comes of it.
#include <algorithm>
#include <array>
#include <utility>

#include "binding/arrays/exchange.h"
#include "binding/gil.h"
#include "binding/plan.h"
#include "binding/sums.h"
#include "element/around.h"
#include "element/norm.h"

namespace fusedstep {
namespace {

py::tuple told(const Finding& found) {
    const auto measured = [](double norm) { return norm == kUnmeasured ? py::none() : py::object(py::float_(norm)); };
    const py::object offender = found.offender == kNobody ? py::none() : py::object(py::int_(found.offender));
    return py::make_tuple(measured(found.norm), offender, measured(found.update_norm));
}

// What hyperparameter j of a rule is called.
std::string_view hyper_name(const RuleInfo& rule, size_t j) {
    const size_t own = rule.own_hyper_count;
    return j < own ? word(rule.hypers, j) : word(names_around(), j - own);
}

}  // namespace

void Plan::set_hypers(py::list rows, py::array_t<int64_t, py::array::c_style> row_of, bool skip_nonfinite,
                      bool measures_updates) {
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
    const std::vector<Row> before = std::exchange(rows_, {});
    std::array<double, kMaxHypers> values;
    for (size_t begin = 0; begin < hypers.size(); begin += rule_.hyper_count) {
        for (int j = 0; j < rule_.hyper_count; ++j) values[j] = hypers[begin + j].value;
        const auto& around = *reinterpret_cast<const Around::Hyper*>(values.data() + rule_.own_hyper_count);
        const Type master = around.master == 1 ? kFloat32 : around.master == 2 ? kUInt16 : kTypes;
        rows_.push_back({around.averages(), around.zero_grad != 0, around.frozen != 0, master});
    }
    const auto zeroes = [](const Row& row) { return row.zero_grad; };
    bool same_zeroes = std::ranges::equal(before, rows_, {}, zeroes, zeroes);
    hypers_ = std::move(hypers);
    live_ = std::move(live);
    hypers_device_ = device;
    hypers_changed_ = true;
    skip_nonfinite_ = skip_nonfinite;
    measures_updates_ = measures_updates;
    for (size_t i = 0; i < tensors_.size(); ++i) {
        const bool same_row = slots_[i].row == row_of_tensor(i);
        grads_changed_ = grads_changed_ || !same_row;
        same_zeroes = same_zeroes && same_row;
        slots_[i].row = static_cast<int32_t>(row_of_tensor(i));
        tensors_[i].ready = is_ready(i);
    }
    // What overlaps a gradient matters once the gradient is written.
    if (!same_zeroes && std::ranges::any_of(rows_, zeroes)) disjoint_ = false;
}

py::object Plan::run(py::object params, py::object grads, const Numbers& numbers, py::object stream,
                     const Commitment* commitment) {
    Turn turn(*this);
    if (!fetch(params, grads)) return py::bool_(false);
    if (!check_arrays()) return py::bool_(false);
    take_summands(numbers.others);
    return on_gpu() ? run_on_gpu(numbers, stream, commitment) : run_on_host(numbers, stream, commitment);
}

py::object Plan::Commitment::exchange() const {
    auto before = py::reinterpret_steal<py::object>(PyObject_GenericGetAttr(owner.ptr(), name.ptr()));
    if (!before || PyObject_GenericSetAttr(owner.ptr(), name.ptr(), value.ptr()) < 0) throw py::error_already_set();
    return before;
}

py::object Plan::run_on_host(const Numbers& numbers, py::handle stream, const Commitment* commitment) {
    const auto is_there = [](py::handle number) { return !PyFloat_CheckExact(number.ptr()) && is_on_gpu(number); };
    if (!live_.empty() || is_there(numbers.grad_scale) || is_there(numbers.loss_scale) || is_there(numbers.skip))
        throw py::type_error(
            "a hyperparameter or grad_scale is on a GPU, expected a number like params in host memory");
    if (!stream.is_none()) throw py::type_error("stream is given, expected None with params in host memory");
    Request request;
    request.grad_scale.value = py::cast<double>(numbers.grad_scale);
    request.loss_scale.value = py::cast<double>(numbers.loss_scale);
    request.skip.value = py::cast<double>(numbers.skip);
    const std::vector<SquareSum> sums = square_sums(numbers.sums, tensors_.size());
    request.sums = sums;
    return run(host_engine(), request, commitment);
}

py::object Plan::run_on_gpu(const Numbers& numbers, py::handle stream, const Commitment* commitment) {
    if (!numbers.sums.is_none())
        throw py::type_error("sums is given, expected None with params on a GPU, which measures its own gradients");
    if (!numbers.others.is_none())
        throw py::type_error("others is given, expected None with params on a GPU, which reads one array a gradient");
    const Engine& engine = gpu_engine(param_name(0));
    int device = hypers_device_;  // all numbers on GPUs must be on one
    Request request;
    request.grad_scale = number_of(numbers.grad_scale, {"grad_scale"}, &device, &foreign_);
    request.loss_scale = number_of(numbers.loss_scale, {"loss_scale"}, &device, &foreign_);
    request.skip = number_of(numbers.skip, {"skip"}, &device, &foreign_);
    for (const py::object& number : live_)
        if (!is_cupy(number)) see_on_gpu(number, {"a hyperparameter"}, &foreign_);
    if (tensors_changed_) find_devices();
    if (device != kHost && (devices_.size() > 1 || device != devices_[0]))
        throw py::value_error("a hyperparameter or grad_scale is " + device_text(device) +
                              ", expected a number, or all of params there");
    const std::vector<Stream> streams = streams_of(stream);
    note_streams();
    // CuPy's current stream counts as that of a foreign array: CuPy's memory comes from there, and returns to it.
    if (!of_torch_)
        for (size_t d = 0; d < devices_.size(); ++d)
            if (const Stream theirs = current_stream(devices_[d]); theirs != streams[d])
                foreign_.push_back({{}, devices_[d], theirs});
    StreamOrder order(engine.streams, devices_, streams, std::move(foreign_));
    order.begin();
    request.captured = order.is_captured();
    request.streams = streams;
    if (request.captured && (tensors_changed_ || !session_))
        throw std::runtime_error("the stream is being captured, expected a step with these params before that");
    py::object result = run(engine, request, commitment);
    order.end();
    return result;
}

// Tell the engine what has changed since the last step, and let it make this one.
py::object Plan::run(const Engine& engine, const Request& asked, const Commitment* commitment) {
    if (tensors_changed_ || !session_) {
        close_session();
        session_ = engine.open(rule_, devices_);
        session_->set_tensors(slots_);
        hypers_changed_ = true;
        grads_changed_ = grads_moved_ = false;
    }
    tensors_changed_ = true;  // stays so after an error: the next step then tells everything anew
    if (hypers_changed_) session_->set_hypers(hypers_);
    hypers_changed_ = false;
    if (grads_changed_)
        session_->set_gradients();
    else if (grads_moved_)
        session_->set_gradient_addresses();
    grads_changed_ = grads_moved_ = false;

    Request request = asked;
    request.skips_nonfinite = skip_nonfinite_;
    request.measures_updates = measures_updates_;
    count_writes(counting_);
    py::object before;
    if (commitment) before = commitment->exchange();
    Outcome outcome;
    try {
        without_gil(session_->traffic(), [&] { outcome = session_->run(request); });
    } catch (...) {  // before anything was written
        if (commitment) Commitment{commitment->owner, commitment->name, before}.exchange();
        throw;
    }
    tensors_changed_ = false;
    if (auto* found = std::get_if<Finding>(&outcome)) return told(*found);
    if (auto* ticket = std::get_if<Ticket>(&outcome)) return py::cast(PendingFinding(session_, *ticket));
    return py::bool_(true);
}

py::list Plan::squares_of_updates() const {
    const std::span<const double> sums = session_ ? session_->squares_of_updates() : std::span<const double>();
    size_t expected = 0;
    for (const Slot& slot : slots_) expected += slot.has_grad ? blocks_of(slot.size) : 0;
    const bool is_measured = measures_updates_ && sums.size() == expected;
    py::list found;
    const double* next = sums.data();
    for (const Slot& slot : slots_) {
        if (!is_measured || !slot.has_grad) {
            found.append(py::none());
            continue;
        }
        const int64_t blocks = blocks_of(slot.size);
        found.append(py::array_t<double>(blocks, next));
        next += blocks;
    }
    return found;
}

// End the session: the clocks come back to the host, and what a graph may use stays.
void Plan::close_session() {
    refresh();
    if (session_ && session_->was_captured()) captured_.push_back(session_);
    session_.reset();
}

void Plan::find_devices() {
    devices_.clear();
    for (const Slot& slot : slots_)
        if (std::ranges::find(devices_, slot.device) == devices_.end()) devices_.push_back(slot.device);
}

// The stream of a device in which a step is made unless another one is given.
Stream Plan::own_stream(int device) const {
    const auto first = std::ranges::find_if(tensors_, [](const Tensor& tensor) { return tensor.has(kParam); });
    const dlpack::Exchange* const library = first == tensors_.end() ? nullptr : first->views[kParam].exchange;
    return library ? current_stream(*library, device) : current_stream(device);
}

// Note the streams of libraries whose arrays are recognised without a look that would note them.
void Plan::note_streams() {
    const dlpack::Exchange* last = nullptr;
    for (const Tensor& tensor : tensors_)
        for (int role : {kParam, kGrad}) {
            const dlpack::Exchange* const library = tensor.views[role].exchange;
            if (!library || library == last) continue;
            last = library;
            for (int device : devices_) note_stream(*library, device, &foreign_);
        }
}

// The stream to use on each device.
std::vector<Stream> Plan::streams_of(py::handle stream) const {
    if (stream.is_none()) {
        std::vector<Stream> streams;
        for (int device : devices_) streams.push_back(own_stream(device));
        return streams;
    }
    if (devices_.size() > 1)
        throw py::value_error("stream is given, expected None with params on " + std::to_string(devices_.size()) +
                              " GPUs, each of which has its own current stream");
    return {stream_of(stream)};
}

py::tuple PendingFinding::read() const {
    Finding found;
    without_gil([&] { found = session_->read(ticket_); });
    return told(found);
}

void Plan::leave() {
    refresh();
    tensors_changed_ = tensors_changed_ || on_gpu();
}

void Plan::wait() {
    const std::shared_ptr<Session> session = session_;
    if (session) without_gil([&] { session->wait(); });
}

void Plan::refresh() {
    const std::shared_ptr<Session> session = session_;
    if (!session || !session->has_stale_clocks()) return;
    const Engine& engine = gpu_engine({"params"});
    for (int device : devices_)
        if (engine.streams.is_capturing(device, own_stream(device)))
            throw std::runtime_error(
                "the step count is on a GPU, and cannot be read while its stream is captured; a number that depends on "
                "it, as a schedule does, must be on the GPU too");
    std::vector<Clock> clocks(slots_.size());
    without_gil([&] { session->read_clocks(clocks); });
    for (size_t i = 0; i < clocks.size(); ++i) *slots_[i].clock = clocks[i];
}

}  // namespace fusedstep
