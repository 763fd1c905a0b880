// A rule that is made at run time: what a function in Python computes, as a list of operations. Plain data, also for
// code on a GPU.
//
// A program has two parts. Numbers are derived once per step, in double, from the hyperparameters, the count t and the
// memory of the rule. Elements are computed from the arrays and from some of the numbers, in the type of the
// computation, each operation rounded once. Every operation names its operands among what comes before it.
#pragma once

#include "step.h"

namespace fusedstep {

// Operations with their operands and their result: x for a number or an element, c for a condition. Operations on
// conditions and comparisons of numbers give 1 and 0. The power is for numbers only, and its exponent is a whole number
// of at least 0.
#define FUSEDSTEP_OPERATIONS(X)        \
    X(Add, "add", "xx", 'x')           \
    X(Subtract, "subtract", "xx", 'x') \
    X(Multiply, "multiply", "xx", 'x') \
    X(Divide, "divide", "xx", 'x')     \
    X(Root, "sqrt", "x", 'x')          \
    X(Negative, "negative", "x", 'x')  \
    X(Magnitude, "absolute", "x", 'x') \
    X(Sign, "sign", "x", 'x')          \
    X(Larger, "maximum", "xx", 'x')    \
    X(Smaller, "minimum", "xx", 'x')   \
    X(Less, "less", "xx", 'c')         \
    X(AtMost, "less_equal", "xx", 'c') \
    X(Equal, "equal", "xx", 'c')       \
    X(Both, "logical_and", "cc", 'c')  \
    X(Either, "logical_or", "cc", 'c') \
    X(Not, "logical_not", "c", 'c')    \
    X(Select, "where", "cxx", 'x')     \
    X(Power, "power", "xx", 'x')

enum class Op : uint8_t {
#define OP(Name, text, operands, result) k##Name,
    FUSEDSTEP_OPERATIONS(OP)
#undef OP
        kCount
};

constexpr int kMaxOperations = 64;  // on numbers, and on elements
constexpr int kMaxConstants = 32;
constexpr int kMaxOwnHypers = 12;
constexpr int kMaxNumbers = kMaxOwnHypers + 1 + kMaxMemory + kMaxConstants + kMaxOperations;

struct Operation {
    Op op;
    int16_t operands[3];  // those that the operation does not have are 0
};

// The numbers of a program, in the order in which operands name them: hyperparameters, t, memory before the update,
// constants, results of operations.
struct Numbers {
    int32_t hyper_count, memory_count, constant_count, operation_count, scalar_count;
    double memory_start[kMaxMemory];  // what the memory is before the first update
    double constants[kMaxConstants];
    Operation operations[kMaxOperations];
    int16_t memory[kMaxMemory];        // the numbers that the memory becomes
    int16_t scalars[kMaxRuleScalars];  // the numbers that elements are computed from

    constexpr int first_memory() const { return hyper_count + 1; }
    constexpr int first_constant() const { return first_memory() + memory_count; }
    constexpr int first_operation() const { return first_constant() + constant_count; }
    constexpr int count() const { return first_operation() + operation_count; }
};

// Operands of elements: arrays, then results of operations; scalar number k is -1 - k.
constexpr int16_t kParamOperand = 0, kGradOperand = 1, kFirstStateOperand = 2;
constexpr int16_t kFirstResult = kFirstStateOperand + kMaxStates;

struct Elements {
    int32_t state_count, operation_count;
    Operation operations[kMaxOperations];
    int16_t update;              // the operand that is subtracted from the parameter
    int16_t states[kMaxStates];  // the operands that the states become
};

struct Program {
    Numbers numbers;
    Elements elements;
};

constexpr const char* operands_of(Op op) {
    switch (op) {
#define OPERANDS(Name, text, operands, result) \
    case Op::k##Name:                          \
        return operands;
        FUSEDSTEP_OPERATIONS(OPERANDS)
#undef OPERANDS
        default:
            return "";
    }
}

constexpr char result_of(Op op) {
    switch (op) {
#define RESULT(Name, text, operands, result) \
    case Op::k##Name:                        \
        return result;
        FUSEDSTEP_OPERATIONS(RESULT)
#undef RESULT
        default:
            return 'x';
    }
}

// Refuse a program in which anything is out of its range, by std::invalid_argument. No other program may be run.
void check(const Program& program);

}  // namespace fusedstep
