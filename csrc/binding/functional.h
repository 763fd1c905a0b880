// A step without a plan: arrays and states are the caller's, and looked at in every call.
#pragma once

#include "binding/arrays/view.h"
#include "rules/info.h"

namespace fusedstep {

// Make update number `t`, from 1, of one array, or of lists of arrays. `arrays` is (p, g, states...); `hypers` are a
// row of hyperparameters and the factor on the gradients as doubles; `memory` is what the rule keeps between steps,
// after update t - 1. On a GPU the work goes into CuPy's current stream. Returns the memory after the update.
py::tuple update(const RuleInfo& rule, py::tuple arrays, py::bytes hypers, py::object t, py::tuple memory);

}  // namespace fusedstep
