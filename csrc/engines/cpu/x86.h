// Machine code for x86-64, made of the program of a rule.
#pragma once

#include <vector>

#include "engines/cpu/kernels.h"

namespace fusedstep {

// The instruction sets that code is made for, by the bytes of their vectors.
enum class Vectors : int { kAvx2 = 32, kAvx512 = 64 };

// Make the code of a function of the type Generated, which needs no address but those that it is given.
// Each operation of the program becomes the one instruction that IEEE 754 describes. Empty where a program needs more
// registers than there are.
std::vector<uint8_t> encode(const Program& program, Ending ending, Vectors vectors, bool is_double);

}  // namespace fusedstep
