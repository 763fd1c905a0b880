// The list of rules: every engine expands it, so a rule that one engine lacks cannot be.
#pragma once
#include "adadelta.h"
#include "adagrad.h"
#include "adam.h"
#include "adamax.h"
#include "amsgrad.h"
#include "limit.h"
#include "lion.h"
#include "momentum.h"
#include "nadam.h"
#include "nag.h"
#include "rmsprop.h"
#include "sgd.h"

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
    X(Lion)

#define FUSEDSTEP_LIMITS(X) X(Limit0) X(Limit1) X(Limit2) X(Limit3)
