// What the house knows of a rule besides its formula: names, counts, and how scalars follow from hyperparameters.
#pragma once

#include <span>

#include "step.h"

namespace fusedstep {

struct Made;  // a rule that is made at run time; see programs/made.h

struct RuleInfo {
    int id;              // place in the list of rules
    const char* name;    // "adam"
    const char* states;  // "m v"
    const char* hypers;  // "lr beta1 beta2 ...", without the hyperparameters around every rule
    const char* memory;  // numbers that are kept between updates, "product", or ""
    int state_count, memory_count;
    int hyper_count;      // length of a row: the rule's own, then those around every rule
    int own_hyper_count;  // the rule's own
    bool counts;          // whether the scalars depend on the number of the update
    // Advance a clock by one update and derive the scalars from a row of hyperparameters, in IEEE mode.
    void (*derive)(const RuleInfo& rule, const double* hypers, Clock& clock, Derived& derived);
    const Made* made;  // the program of a rule that is made at run time, else null
};

// The rules of the list, in its order. Rules that are made at run time are numbered behind them.
std::span<const RuleInfo> rule_infos();

// The names of the hyperparameters around every rule, such as clipping and decay, in the order of a row.
const char* names_around();

}  // namespace fusedstep
