// A step without a plan: arrays and states are the caller's, and looked at in every call.
#pragma once

#include "binding/arrays.h"

namespace fusedstep {

// One update of one array, or of lists of arrays: arrays = (p, g, states...), hypers = the rule's numbers and the scale
// of the gradients as doubles, t = the number of the update, from 1; on a GPU, in CuPy's current stream. Returns
// Nadam's product after the update.
double update(int rule, py::tuple arrays, py::bytes hypers, py::object t, double product);

// What a step knows about its gradients before it begins; the scales of the slots, which also clip.
struct Measure {
    double norm = 0;  // of all of them, unscaled
    std::vector<double> scales;
    int64_t offender = -1;  // the first slot whose gradient is not finite, where such a step is skipped
};

// Read the gradients once. `hypers` are those of each slot; `grad_scale` that of the step.
Measure measure(const Kernel& kernel, const std::vector<Slot>& slots, const std::vector<const double*>& hypers,
                double grad_scale, bool skip_nonfinite);

// Run a step; long work without the GIL.
void run_slots(int rule, const std::vector<Slot>& slots, const Derived* groups);

}  // namespace fusedstep
