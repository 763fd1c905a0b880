// A plan: the list of tensors of an optimizer, each looked at once and recognised in the following steps.
// It owns no state: parameters and gradients are passed at every step, states and clocks belong to Python.
#pragma once

#include <atomic>

#include "binding/arrays.h"
#include "binding/gpu.h"

namespace fusedstep {

enum class Kind { kArray, kSequence, kMapping };

// An argument `params` or `grads` as one array, a list or tuple, or a dict.
struct Container {
    Kind kind;
    py::object items;
};

// What a step on GPUs finds out about its gradients, once it is read.
class Ticket {
public:
    Ticket(std::shared_ptr<cuda::Session> session, int64_t number) : session_(std::move(session)), number_(number) {}

    // The norm, and the number of the tensor for whose gradient the step was skipped, or None. Waits for the step.
    py::tuple read() const;
    // Whether it is about a step in a graph, and may change with each replay.
    bool is_captured() const { return number_ >= cuda::kTickets; }

private:
    const std::shared_ptr<cuda::Session> session_;
    const int64_t number_;
};

class Plan {
public:
    Plan(int rule, py::object params);

    const py::list& keys() const { return keys_; }

    // Check all arrays of a step. Returns, for each tensor, a tuple (shape, dtype, device) if it has a gradient, else
    // None; the device is the number of a GPU, or None.
    py::list check(py::object params, py::object grads);

    // Take over the states, the average and the master of each tensor (a tuple, in it None for what is not there; or
    // None), the clocks that hold its step number, and the number by which its noise differs from that of others.
    void bind(py::list kept, py::array clocks, py::array_t<int64_t, py::array::c_style> clock_of,
              py::array_t<uint64_t, py::array::c_style> numbers);

    // Set rows of hyperparameters, the row that each tensor uses, and whether a step with a gradient that is not finite
    // is skipped.
    void set_hypers(py::list rows, py::array_t<int64_t, py::array::c_style> row_of, bool skip_nonfinite);

    // Make a step, on GPUs in a stream or, if that is None, in the current one. False, and nothing done, if the
    // arguments are not the tensors of this plan, or lack states; else True. Where the gradients were measured, a
    // tuple: their norm, and the number of the tensor for whose gradient the step was skipped, or None; on GPUs, a
    // ticket, which is good until kTickets - 1 further steps have been made.
    py::object run(py::object params, py::object grads, py::object grad_scale, py::object stream);

    // Whether a graph may use what it has.
    bool was_captured() const { return !captured_.empty() || (session_ && session_->was_captured()); }
    // Wait for the steps on GPUs.
    void wait();
    // Bring the clocks up to date, where only a GPU knows them; waits for the steps.
    void refresh();

private:
    struct Tensor {
        std::vector<py::ssize_t> shape;
        View views[kRoles];  // those of type kTypes are not there
        bool bound = false, ready = false;
        uint64_t number = 0;
        Clock* clock = nullptr;
        int64_t row = 0;
        bool takes_part = false;  // has a gradient in this step

        bool has(int role) const { return views[role].type != kTypes; }
    };
    // A row of the table: a set of hyperparameters.
    struct Row {
        bool averages, zero_grad;
        Type master;  // of half-precision parameters
        double scale;
        Variant variant;
        Derived* group;  // in this step, or null
    };
    class Turn;  // one thread at a time, holding the arrays while it lasts

    Name name(const char* role, const char* role_of_one, size_t i) const;
    Name param_name(size_t i) const { return name("params", "param", i); }
    Name grad_name(size_t i) const { return name("grads", "grad", i); }
    Name span_name(size_t id) const;
    void settle(size_t i);
    bool is_ready(size_t i) const;

    bool fetch(py::object params, py::object grads);
    bool fetch_params(const Container& params);
    void fetch_grads(const Container& grads);
    View look_at_param(size_t i);
    View look_at_grad(size_t i, bool writable);
    void moved(size_t i);
    bool check_arrays();
    void check_overlap();
    py::tuple examine(double grad_scale);
    void derive(double grad_scale);
    const double* hypers(size_t i) const;
    bool on_gpu() const { return !tensors_.empty() && tensors_.front().views[kParam].device != kHost; }
    py::object run_on_host(double grad_scale);
    py::object run_on_gpu(py::handle grad_scale, py::handle stream);
    std::vector<cuda::Stream> streams_of(py::handle stream) const;
    void find_devices();
    void open_session(const cuda::Engine& engine);
    void close_session();
    void set_gradients();

    const int rule_;
    Kind kind_;
    py::list keys_;
    std::vector<Tensor> tensors_;
    std::vector<Row> rows_;
    std::vector<double> table_;
    std::vector<cuda::Number> numbers_;  // the same, some of them on a GPU
    int numbers_device_ = kHost;         // where these are
    std::vector<py::object> live_;       // and their arrays
    bool measures_ = false, skip_nonfinite_ = false;
    std::vector<Slot> slots_;                 // of all tensors; without a gradient in this step, the size is 0
    std::vector<Derived> derived_;            // of this step
    std::vector<py::object> held_;            // states, averages and clocks
    std::vector<py::object> params_, grads_;  // the arrays of the step that is running
    std::vector<Span> owned_spans_, grad_spans_;
    bool owned_sorted_ = false, disjoint_ = false;
    std::atomic<bool> busy_{false};

    // On GPUs. What the host knows of the clocks may be out of date: where steps are skipped, or come from a graph.
    std::shared_ptr<cuda::Session> session_;
    std::vector<std::shared_ptr<cuda::Session>> captured_;  // those that a graph may still use
    std::vector<int> devices_;
    Foreigners foreign_;  // in the step that is running
    bool tensors_changed_ = true, grads_changed_ = true, hypers_changed_ = true;
    bool clocks_stale_ = false;
    int64_t tickets_ = 0, captured_tickets_ = 0, gradient_count_ = 0;
};

// Misuse from two threads at once is an error, not a crash; and the arrays live as long as the step.
class Plan::Turn {
public:
    explicit Turn(Plan& plan) : plan_(plan) {
        if (plan_.busy_.exchange(true, std::memory_order_acquire))
            throw std::runtime_error("this optimizer is already in a step, expected one step at a time");
    }
    ~Turn() {
        plan_.params_.clear();
        plan_.grads_.clear();
        plan_.foreign_.clear();
        plan_.busy_.store(false, std::memory_order_release);
    }
    Turn(const Turn&) = delete;

private:
    Plan& plan_;
};

}  // namespace fusedstep
