// A step without a plan: arrays and states are the caller's, and looked at in every call.
#pragma once

#include "arrays.h"

namespace fusedstep {

// One update of one array, or of lists of arrays: arrays = (p, g, states...), hypers = the rule's numbers as doubles,
// t = the number of the update, from 1. Returns Nadam's product after the update.
double update(int rule, py::tuple arrays, py::bytes hypers, py::object t, double product);

// Run a step; long work without the GIL.
void run_slots(int rule, const std::vector<Slot>& slots, const Group* groups, int64_t bytes);

}  // namespace fusedstep
