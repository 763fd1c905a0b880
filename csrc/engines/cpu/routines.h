// What the engine for host memory makes of rules that are made at run time: routines for the machine, and machine code
// where a processor, and the memory of a process, allow it.
#pragma once

#include <string_view>
#include <vector>

#include "engines/cpu/kernels.h"
#include "programs/made.h"

namespace fusedstep {

// The routine of a rule on an instruction set. Code is generated when it is first asked for.
Routine routine_of(const Made& made, const Kernels& kernels);

// The machine code of a rule for an instruction set, which this processor need not have. Empty where the rule needs
// more registers than there are. Raises std::invalid_argument for an instruction set that no code is made for.
std::vector<uint8_t> code_of(const Made& made, std::string_view isa, bool is_double, Ending ending);

// Whether rules run as generated code where that is possible, or by the machine.
void use_code(bool wanted);
bool uses_code();
// Why no code is generated for an instruction set; empty if it is.
const char* why_no_code(const Kernels& kernels);

}  // namespace fusedstep
