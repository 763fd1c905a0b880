// Sums over arrays in host memory, for callers that hold parts of something larger: of squares, as a norm adds them up,
// and of several gradients.
#pragma once

#include "binding/arrays/view.h"
#include "step.h"

namespace fusedstep {

// The types of the arrays of a sum that is of a type.
constexpr TypeSet summed_in(Type type) {
    return type == kFloat64 ? set_of(kFloat64) : set_of(kFloat32) | kNarrow;
}
// Look at an array of a sum, which is like the others and contiguous row by row.
View look_at_summand(py::object& array, const Name& name, const Like& like);

// The sum of squares of each block of an array in host memory, whose elements are numbered row by row, or of the sum of
// the arrays of a list; see norm.h. Each element is first rounded to the type that computes for a parameter of the
// dtype `param`, by default the array's own. The unit is 1 or kLargeUnit, which is for float64.
py::array_t<double> sums_of_blocks(py::object array, py::object param, double unit);

// The sum of sums of blocks, over all levels above them; see norm.h.
double sum_of_sums(py::array_t<double, py::array::c_style> sums);

// Write the sum of arrays of one shape to `out`, in the order of a balanced tree; see engines/cpu/sum.h. All rows are
// contiguous. float64 if all arrays are, else float32, to which narrow arrays are widened. `out` may be one of them.
void sum_parts(py::list arrays, py::object out);

// The sums of squares by tensor, an array of (sum, unit): checked, in place of measuring. Nothing for None.
std::vector<SquareSum> square_sums(py::object sums, size_t tensors);

}  // namespace fusedstep
