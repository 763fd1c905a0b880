// A plan: the list of tensors of an optimizer, each looked at once and recognised in the following steps.
// It owns no state: parameters and gradients are passed at every step, states and clocks belong to Python.
#pragma once

#include <atomic>

#include "arrays.h"

namespace fusedstep {

enum class Kind { kArray, kSequence, kMapping };

// An argument `params` or `grads` as one array, a list or tuple, or a dict.
struct Container {
    Kind kind;
    py::object items;
};

class Plan {
public:
    Plan(int rule, py::object params);

    const py::list& keys() const { return keys_; }

    // Check all arrays of a step. Returns, for each tensor, a tuple (shape, dtype) if it has a gradient, else None.
    py::list check(py::object params, py::object grads);

    // Take over the states, the average and the master of each tensor (a tuple, in it None for what is not there; or
    // None), the clocks that hold its step number, and the number by which its noise differs from that of others.
    void bind(py::list kept, py::array clocks, py::array_t<int64_t, py::array::c_style> clock_of,
              py::array_t<uint64_t, py::array::c_style> numbers);

    // Set rows of hyperparameters, the row that each tensor uses, and whether a step with a gradient that is not finite
    // is skipped.
    void set_hypers(py::list rows, py::array_t<int64_t, py::array::c_style> row_of, bool skip_nonfinite);

    // Make a step. False, and nothing done, if the arguments are not the tensors of this plan, or lack states; else
    // True, or, where the gradients were measured, a tuple: their norm, and the number of the tensor for whose gradient
    // the step was skipped, or None.
    py::object run(py::object params, py::object grads, double grad_scale);

private:
    struct Tensor {
        std::vector<py::ssize_t> shape;
        View views[kRoles];  // those of type kTypes are not there
        bool bound = false, ready = false;
        uint64_t number = 0;
        Clock* clock = nullptr;
        int64_t row = 0;

        bool has(int role) const { return views[role].type != kTypes; }
    };
    // A row of the table: a set of hyperparameters.
    struct Row {
        bool averages, zero_grad;
        Type master;  // of half-precision parameters
        double scale;
        Group* group;  // in this step, or null
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
    bool check_arrays();
    void check_overlap();
    py::tuple examine(double grad_scale);
    void derive(double grad_scale);
    const double* hypers(size_t i) const;

    const int rule_;
    Kind kind_;
    py::list keys_;
    std::vector<Tensor> tensors_;
    std::vector<Row> rows_;
    std::vector<double> table_;
    bool measures_ = false, skip_nonfinite_ = false;
    std::vector<Slot> slots_;                 // of all tensors; without a gradient in this step, the size is 0
    std::vector<Group> groups_;               // of this step
    std::vector<py::object> held_;            // states, averages and clocks
    std::vector<py::object> params_, grads_;  // the arrays of the step that is running
    std::vector<Span> owned_spans_, grad_spans_;
    bool owned_sorted_ = false, disjoint_ = false;
    std::atomic<bool> busy_{false};
};

}  // namespace fusedstep
