// The list of rules, from simple to complex. Every engine expands the list, so no engine can lack a rule.
#pragma once
#include "rules/adabelief.h"
#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/adamax.h"
#include "rules/amsgrad.h"
#include "rules/limit.h"
#include "rules/lion.h"
#include "rules/momentum.h"
#include "rules/nadam.h"
#include "rules/nag.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

#define FUSEDSTEP_RULES(X)     \
    X(SGD)                     \
    X(Momentum)                \
    X(NAG)                     \
    X(Adagrad)                 \
    X(RMSprop)                 \
    X(RMSpropCentered)         \
    X(RMSpropMomentum)         \
    X(RMSpropCenteredMomentum) \
    X(Adadelta)                \
    X(Adam)                    \
    X(AMSGrad)                 \
    X(Adamax)                  \
    X(Nadam)                   \
    X(RAdam)                   \
    X(AdaBelief)               \
    X(Lion)

#define FUSEDSTEP_LIMITS(X) X(Limit0) X(Limit1) X(Limit2) X(Limit3) X(Limit4)
