// A step without a plan: arrays and states are the caller's, and looked at in every call.
#pragma once

#include "arrays.h"

namespace fusedstep {

// One update of one array, or of lists of arrays: arrays = (p, g, states...), hypers = the rule's numbers and the scale
// of the gradients as doubles, t = the number of the update, from 1. Returns Nadam's product after the update.
double update(int rule, py::tuple arrays, py::bytes hypers, py::object t, double product);

// What a step knows about its gradients before it begins.
struct Measure {
    bool is_made = false;   // whether somebody asked for it
    double norm = 0;        // of all gradients, unscaled
    int64_t offender = -1;  // the first slot whose gradient is not finite, where such a step is skipped
};

// Set the slots' scales. `hypers` are those of each slot; `grad_scale` that of the step. Reads the gradients once if a
// norm is needed, or with `skip_nonfinite`.
Measure measure(const Kernel& kernel, std::vector<Slot>& slots, const std::vector<const double*>& hypers,
                double grad_scale, bool skip_nonfinite);

// Run a step; long work without the GIL.
void run_slots(int rule, const std::vector<Slot>& slots, const Group* groups);

}  // namespace fusedstep
