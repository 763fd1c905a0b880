// A plan: the list of tensors of an optimizer. Each tensor is looked at once, and recognised in the following steps.
// The plan owns no state: parameters and gradients are passed at every step, states and clocks belong to Python.
#pragma once

#include <atomic>

#include "binding/arrays/gpu.h"
#include "binding/arrays/overlap.h"
#include "binding/tree.h"
#include "engine.h"

namespace fusedstep {

// What a step on GPUs finds out about its gradients, once it is read.
class PendingFinding {
public:
    PendingFinding(std::shared_ptr<Session> session, Ticket ticket) : session_(std::move(session)), ticket_(ticket) {}

    // What Plan::run says: norm, index and norm. Waits for the step.
    py::tuple read() const;
    // Whether the finding is about a step in a graph, and may change with each replay.
    bool is_captured() const { return session_->is_captured(ticket_); }

private:
    const std::shared_ptr<Session> session_;
    const Ticket ticket_;
};

class Plan {
public:
    // Parameters of an optimizer of PyTorch may require gradients. Each of them has its own gradient, as the attribute
    // `grad`, which a step takes where it is given none.
    Plan(const RuleInfo& rule, py::object params, bool of_torch);

    const py::list& keys() const { return tree_.keys(); }

    // Check all arrays of a step; `averaged` says of each tensor whether it has an average, so that it takes part
    // without a gradient too. Returns, for each tensor, a tuple (shape, dtype, device, order, has a gradient) if it
    // takes part, else None; the device is the number of a GPU, or None, and the order that of the axes, the slowest in
    // memory first.
    py::list check(py::object params, py::object grads, std::vector<bool> averaged);

    // Take over what belongs to each tensor: in `kept` a tuple of its states, its average, its master, and arrays of
    // one number each, float32 or both float64, that shall follow `t` and the first number of the memory of its clock;
    // with None for what is not there, or None in place of the tuple; in `clock_of` the index of its clock; in
    // `noise_ids` the number that tells its random bits from those of others; in `origins`, unless None, the number of
    // its first element where it is a part of a larger tensor.
    void bind(py::list kept, py::array clocks, py::array_t<int64_t, py::array::c_style> clock_of,
              py::array_t<uint64_t, py::array::c_style> noise_ids, py::object origins);

    // Set rows of hyperparameters, the row that each tensor uses, whether a step with a gradient that is not finite is
    // skipped, and whether the norm of the updates is asked for.
    void set_hypers(py::list rows, py::array_t<int64_t, py::array::c_style> row_of, bool skip_nonfinite,
                    bool measures_updates);

    // Make a step, on GPUs in `stream` or, if `stream` is None, in the current one of PyTorch where the first parameter
    // is its tensor, else of CuPy. Gradients are divided by `loss_scale`, and nothing is updated unless `skip` is 0;
    // each of them is a number, or one on a GPU. Returns False, and has done nothing, if the arguments are not the
    // tensors of this plan, or lack states; else True. Where gradients or updates were measured, returns a tuple: the
    // norm of the gradients, the index of the tensor for whose gradient the step was skipped, and the norm of the
    // updates, each or None; on GPUs, a PendingFinding, which can be read until kTickets - 1 further steps have been
    // made.
    //
    // `sums`, where it is not None, has for each tensor the sum of squares of its gradient and the unit of the sum.
    // They stand in place of those that would be measured: the tensors may be parts of those that have these sums.
    // `others`, where it is not None, has for each tensor None, or a list of further arrays, contiguous row by row: the
    // gradient is the sum of the array in `grads` and of these, as sum_parts adds them up. Both in host memory only.
    //
    // With an `owner`, its attribute `name` becomes `value` once all is checked and before the first array is written,
    // without running any code of Python: nobody can interrupt the call in between.
    struct Commitment {
        py::object owner, name, value;

        py::object exchange() const;  // set the attribute, and return what it was before
    };
    struct Numbers {
        py::object grad_scale, loss_scale = py::float_(1.0), skip = py::float_(0.0);
        py::object sums = py::none(), others = py::none();
    };
    py::object run(py::object params, py::object grads, const Numbers& numbers, py::object stream,
                   const Commitment* commitment = nullptr);

    // For each tensor, the sums of squares, block by block, of what the last step has subtracted from the tensor. None
    // for a tensor without a gradient, after a step that was skipped or measured no updates, and for tensors on GPUs.
    py::list squares_of_updates() const;

    // Whether a captured graph may still use memory of the plan.
    bool was_captured() const { return !captured_.empty() || (session_ && session_->was_captured()); }
    // Wait for the steps on GPUs.
    void wait();
    // Bring the clocks up to date, where only a GPU knows them; waits for the steps.
    void refresh();
    // The same, and take the clocks from host memory in the next step.
    void leave();

private:
    struct Tensor {
        View views[kRoles];      // an array that is not there has the type kTypes
        std::vector<Axis> axes;  // of a gradient that does not lie in memory like its parameter
        bool zeroable = false;   // whether the gradient was seen to have a place for each element, and to be writable
        bool bound = false;      // whether `bind` has given arrays that fit the parameter
        bool ready = false;      // whether its average and master are those that its hyperparameters ask for

        bool has(int role) const { return views[role].type() != kTypes; }
    };
    // What a row of hyperparameters asks for.
    struct Row {
        bool averages = false, zero_grad = false, frozen = false;
        Type master = kTypes;  // of half-precision parameters
    };
    class Turn;  // lets in one thread at a time

    Name name(const char* role, const char* role_of_one, size_t i) const;
    Name param_name(size_t i) const { return name("params", "param", i); }
    Name grad_name(size_t i) const { return name("grads", "grad", i); }
    Name span_name(size_t id) const;
    void update_types(size_t i);
    bool is_ready(size_t i) const;

    bool fetch(py::object params, py::object grads);
    void check_identity(py::handle params);
    void check_single();
    View look_at_param(size_t i);
    void see_param(size_t i);
    void see_grad(size_t i, int flags, char* moved);
    bool can_average(size_t i);
    void forget(size_t i);
    bool check_arrays();
    void take_summands(py::object others);
    void check_overlap();
    [[noreturn]] void refuse_overlap(size_t a, size_t b) const;

    bool zeroes(size_t i) const { return !rows_.empty() && rows_[slots_[i].row].zero_grad; }
    bool on_gpu() const { return !slots_.empty() && slots_.front().device != kHost; }
    py::object run_on_host(const Numbers& numbers, py::handle stream, const Commitment* commitment);
    py::object run_on_gpu(const Numbers& numbers, py::handle stream, const Commitment* commitment);
    Stream own_stream(int device) const;
    std::vector<Stream> streams_of(py::handle stream) const;
    void note_streams();
    void find_devices();
    py::object run(const Engine& engine, const Request& request, const Commitment* commitment);
    void close_session();

    const RuleInfo& rule_;
    const Tree tree_;
    const bool of_torch_;
    std::vector<Tensor> tensors_;
    std::vector<Slot> slots_;  // the tensors, as engines see them
    std::vector<Row> rows_;
    std::vector<bool> averaged_;    // by tensor, before there are rows
    std::vector<Number> hypers_;    // the table of hyperparameters: a value, or an address on a GPU
    int hypers_device_ = kHost;     // the GPU of the addresses in hypers_
    std::vector<py::object> live_;  // keeps the arrays at the addresses in hypers_ alive
    bool skip_nonfinite_ = false, measures_updates_ = false;
    std::vector<py::object> held_;                // keeps states, averages and clocks alive
    std::vector<py::object> params_, grads_;      // the arrays of the step that is running
    std::vector<std::vector<Summand>> summands_;  // by tensor, where a gradient is the sum of several arrays
    std::vector<py::object> counting_;            // those of them that the step writes to and that count that
    WrittenMemory written_;
    bool disjoint_ = false;  // whether `written_` is up to date, and no gradient overlaps it
    py::object single_;      // weak reference to the owner of the memory of a single array, which has the key 0
    const char* single_data_ = nullptr;  // its address
    std::atomic<bool> busy_{false};

    std::shared_ptr<Session> session_;
    std::vector<std::shared_ptr<Session>> captured_;  // sessions before this one that a graph may still use
    // Since the session was told.
    bool tensors_changed_ = true, grads_changed_ = true, grads_moved_ = false, hypers_changed_ = true;
    std::vector<int> devices_;  // the GPUs of the session
    Foreigners foreign_;        // arrays of the step that is running
};

// A call in which the plan works. A second call meanwhile, from another thread, is an error. The arrays of the call are
// released at its end.
class Plan::Turn {
public:
    explicit Turn(Plan& plan) : plan_(plan) {
        if (plan_.busy_.exchange(true, std::memory_order_acquire))
            throw std::runtime_error("this optimizer is already in a step, expected one step at a time");
    }
    ~Turn() {
        plan_.params_.clear();
        plan_.grads_.clear();
        plan_.counting_.clear();
        plan_.foreign_.clear();
        plan_.busy_.store(false, std::memory_order_release);
    }
    Turn(const Turn&) = delete;

private:
    Plan& plan_;
};

}  // namespace fusedstep
