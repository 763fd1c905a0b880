// Rules that are made at run time: programs with names, in a table that only grows.
#pragma once

#include <string>

#include "programs/instructions.h"
#include "rules/info.h"

namespace fusedstep {

struct Made {
    std::string name, states, hypers, memory;  // names, with blanks between them
    Program program;
    bool has_lr;    // whether the first hyperparameter is the learning rate
    Code codes[2];  // by Ending
    RuleInfo info;

    const Code& code(Ending ending) const { return codes[static_cast<int>(ending)]; }
};

// The names of the steps of the machine, for a list in layout_of.
#define FUSEDSTEP_STEP_NAME(Name, ...) #Name,
#define FUSEDSTEP_STEP_NAMES FUSEDSTEP_INSTRUCTIONS(FUSEDSTEP_STEP_NAME)

// Check a program and number it as a further rule, which is there from then on. Raises std::invalid_argument or
// std::length_error.
const RuleInfo& define(std::string name, std::string states, std::string hypers, std::string memory,
                       const Program& program);

// The rule of a number: one of the list or one that was made. Raises std::out_of_range.
const RuleInfo& rule_of(int id);

}  // namespace fusedstep
