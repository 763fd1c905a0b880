// What there is to know of a rule but its formula: names, counts, and how its scalars follow from hyperparameters.
#pragma once

#include <span>

#include "step.h"

namespace fusedstep {

struct RuleInfo {
    int number;          // its place in the list of rules
    const char* name;    // "adam"
    const char* states;  // "m v"
    const char*
        hypers;  // its own hyperparameters, "lr beta1 beta2 ..."; a row of the table has those around it after them
    const char* memory;  // the numbers that it keeps between steps, "product", or ""
    int state_count, memory_count;
    int hyper_count;      // of a row: its own and those around it
    int own_hyper_count;  // its own
    bool counts;          // whether its scalars depend on the number of the update
    // Advance a clock by one update and derive the scalars from a row of hyperparameters, in IEEE mode.
    void (*derive)(const double* hypers, Clock& clock, Derived& derived);
};

// The rules, in the order of their list.
std::span<const RuleInfo> rule_infos();

// The names of the hyperparameters around each rule.
const char* names_around();

}  // namespace fusedstep
