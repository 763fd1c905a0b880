#include "engines/cpu/routines.h"

namespace fusedstep {

Routine routine_of(const Made& made, const Kernels&) {
    return {made.codes, made.program.elements.state_count, made.program.numbers.scalar_count, {}};
}

}  // namespace fusedstep
