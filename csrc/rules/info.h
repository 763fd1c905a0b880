// All that engines and plans may know of a rule, which is everything but its formula.
#pragma once

#include <span>

#include "step.h"

namespace fusedstep {

struct RuleInfo {
    int id;  // its place in the list of rules
    const char* name;
    // Names, separated by blanks: of its states, "m v"; of the hyperparameters that are its own, "lr beta1 beta2"; of
    // the numbers that it keeps between steps, "product" or none.
    const char *states, *hypers, *memory;
    int state_count, memory_count;
    int hyper_count;      // of a row of the table: its own hyperparameters, then those around every rule
    int own_hyper_count;  // of these, its own
    bool counts;          // whether its scalars depend on the number of the update
    // Advance a clock by one update and derive the scalars from a row of hyperparameters, in IEEE mode.
    void (*derive)(const double* hypers, Clock& clock, Derived& derived);
};

// The rules, in the order of their list.
std::span<const RuleInfo> rule_infos();

// The names of the hyperparameters around each rule.
const char* names_around();

}  // namespace fusedstep
