// The steps of the accumulator machine, which runs programs where no machine code is made of them: on every CPU, and on
// GPUs.
//
// A step makes a new accumulator of the old one, a, of one or two registers, x and y, and of one or two scalars, k and
// q. Registers are arrays, or intermediate results. Each text is read three times: as a pattern that the assembler
// finds in programs, and as the code of a step, for vectors and for single elements. The first steps do one operation
// each, and suffice for every program; further ones do what rules do often, in fewer passes over the registers.
#pragma once

#include "programs/program.h"

#define FUSEDSTEP_INSTRUCTIONS(X)                                                                                    \
    X(Load, x)                                                                                                       \
    X(Fill, k)                                                                                                       \
    X(Nonzero, nonzero(k))                                                                                           \
    X(Add, a + x)                                                                                                    \
    X(Subtract, a - x)                                                                                               \
    X(SubtractFrom, x - a)                                                                                           \
    X(Multiply, a* x)                                                                                                \
    X(Divide, a / x)                                                                                                 \
    X(DivideInto, x / a)                                                                                             \
    X(AddScalar, a + k)                                                                                              \
    X(SubtractScalar, a - k)                                                                                         \
    X(SubtractFromScalar, k - a)                                                                                     \
    X(MultiplyScalar, k* a)                                                                                          \
    X(DivideScalar, a / k)                                                                                           \
    X(DivideIntoScalar, k / a)                                                                                       \
    X(Root, root(a))                                                                                                 \
    X(Negative, negative(a))                                                                                         \
    X(Magnitude, magnitude(a))                                                                                       \
    X(Sign, sign_of(a))                                                                                              \
    X(Larger, larger(a, x))                                                                                          \
    X(LargerAfter, larger(x, a))                                                                                     \
    X(LargerScalar, larger(a, k))                                                                                    \
    X(LargerAfterScalar, larger(k, a))                                                                               \
    X(Smaller, smaller(a, x))                                                                                        \
    X(SmallerAfter, smaller(x, a))                                                                                   \
    X(SmallerScalar, smaller(a, k))                                                                                  \
    X(SmallerAfterScalar, smaller(k, a))                                                                             \
    X(Less, less(a, x))                                                                                              \
    X(LessAfter, less(x, a))                                                                                         \
    X(LessScalar, less(a, k))                                                                                        \
    X(LessAfterScalar, less(k, a))                                                                                   \
    X(AtMost, at_most(a, x))                                                                                         \
    X(AtMostAfter, at_most(x, a))                                                                                    \
    X(AtMostScalar, at_most(a, k))                                                                                   \
    X(AtMostAfterScalar, at_most(k, a))                                                                              \
    X(Equal, equal(a, x))                                                                                            \
    X(EqualScalar, equal(a, k))                                                                                      \
    X(Both, both(a, x))                                                                                              \
    X(Either, either(a, x))                                                                                          \
    X(Not, inverse(a))                                                                                               \
    X(Select, select(a, x, y))                                                                                       \
    X(SelectOrScalar, select(a, x, k))                                                                               \
    X(SelectScalarOr, select(a, k, x))                                                                               \
    X(SelectScalars, select(a, k, q))                                                                                \
    X(SelectThis, select(x, a, y))                                                                                   \
    X(SelectElseThis, select(x, y, a))                                                                               \
    X(SelectThisOrScalar, select(x, a, k))                                                                           \
    X(SelectScalarElseThis, select(x, k, a))                                                                         \
    /* Several operations, each rounded. No step has both a division and a root: a processor would wait for both. */ \
    X(Sum, x + y)                                                                                                    \
    X(Difference, x - y)                                                                                             \
    X(Product, x* y)                                                                                                 \
    X(Quotient, x / y)                                                                                               \
    X(Square, x* x)                                                                                                  \
    X(Scaled, k* x)                                                                                                  \
    X(Shifted, x + k)                                                                                                \
    X(Reduced, x / k)                                                                                                \
    X(RootOf, root(x))                                                                                               \
    X(SquareThis, a* a)                                                                                              \
    X(AddScaled, a + k * x)                                                                                          \
    X(ScaleAdd, k* a + x)                                                                                            \
    X(SubtractScaled, x - k * a)                                                                                     \
    X(ScaleSubtract, k* a - x)                                                                                       \
    X(ScaledSum, k* x + y)                                                                                           \
    X(Mean, k* x + q * y)                                                                                            \
    X(MeanThis, k* x + q * a)                                                                                        \
    X(MeanSquare, k* x + q * (y * y))                                                                                \
    X(MeanSquareThis, k* x + q * (a * a))                                                                            \
    X(MeanScaledSquare, k* x + (q * y) * y)                                                                          \
    X(MeanScaledSquareThis, k* x + (q * a) * a)                                                                      \
    X(ScaledSquare, k*(x * x))                                                                                       \
    X(AddProduct, a + x * y)                                                                                         \
    X(SubtractProduct, a - x * y)                                                                                    \
    X(Excess, x - y * y)                                                                                             \
    X(SquareDifference, (a - x) * (a - x))                                                                           \
    X(RootShifted, root(a) + k)                                                                                      \
    X(ShiftedRoot, root(a + k))                                                                                      \
    X(RootOfShifted, root(x) + k)                                                                                    \
    X(RootOfReduced, root(x / k) + q)                                                                                \
    X(ScaledOver, (k * x) / a)                                                                                       \
    X(Step, x - (k * y) / a)                                                                                         \
    X(StepOver, x - y / a)                                                                                           \
    X(AddOver, k* x + y / a)                                                                                         \
    X(SignScaled, k* sign_of(a))                                                                                     \
    X(StepSign, x - k * sign_of(a))

namespace fusedstep {

enum class Do : uint8_t {
#define DO(Name, ...) k##Name,
    FUSEDSTEP_INSTRUCTIONS(DO)
#undef DO
        kStore,  // the accumulator to register x
    kEnd,
    kCount
};

// The registers of the machine: the arrays of a tensor as operands number them, the update, intermediate results.
constexpr int kUpdateRegister = kFirstStateOperand + kMaxStates;
constexpr int kFirstTemporary = kUpdateRegister + 1;
constexpr int kRegisters = 20;
constexpr int kMaxInstructions = 4 * kMaxOperations;

struct alignas(8) Instruction {  // so that a GPU reads it at once
    Do what;
    uint8_t x, y, k, q;
};

// A program for the elements of a step, as the machine runs it.
struct Code {
    int32_t count;
    uint32_t written;  // a bit for each register of an array or the update
    Instruction instructions[kMaxInstructions];
};

// What the code of a program ends with: a new parameter, or an update, to which options are still applied.
enum class Ending { kParam, kUpdate };

// Make code of a checked program. Raises std::length_error where it has too many intermediate results or steps.
Code assemble(const Program& program, Ending ending);

}  // namespace fusedstep
