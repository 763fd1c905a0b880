// What the engine for host memory makes of rules that are made at run time.
#pragma once

#include "engines/cpu/kernels.h"
#include "programs/made.h"

namespace fusedstep {

// The routine of a rule on an instruction set.
Routine routine_of(const Made& made, const Kernels& kernels);

}  // namespace fusedstep
