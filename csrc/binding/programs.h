// Rules that Python makes at run time.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "rules/info.h"

namespace fusedstep {

namespace py = pybind11;

// The names of the operations, in the order in which programs number them.
py::tuple operation_names();

// Make a rule of a program, whose lists have the meaning of programs/program.h; an operation is a tuple of its number
// and three operands. Raises TypeError or ValueError for what is no program.
const RuleInfo& define_rule(py::str name, py::tuple states, py::tuple hypers, py::tuple memory, py::list memory_start,
                            py::list constants, py::list numbers, py::list memory_after, py::list scalars,
                            py::list elements, int update, py::list states_after);

// The machine code of the rule with this number, for an instruction set, a dtype, float32 or float64, and an ending,
// param or update; see code_of of routines.h. Raises ValueError for other words, and for a rule that define has not
// made.
py::bytes code_of_rule(int rule, const std::string& isa, const std::string& dtype, const std::string& ending);

}  // namespace fusedstep
