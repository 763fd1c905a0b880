// How arrays lie in memory: dense in some order of their axes, or a gradient with strides of its own.
#pragma once

#include "binding/arrays/view.h"

namespace fusedstep {

// The strides of an array whose rows are contiguous.
std::vector<py::ssize_t> row_strides(Lengths shape, py::ssize_t itemsize);

// The axes of an array, the slowest one in memory first. An axis of one element may stand anywhere.
std::vector<size_t> order_of(const View& view);
// Whether an array fills its memory without gaps, in some order of its axes.
bool is_dense(const View& view);
// Whether two arrays of one shape, of which `dense` is dense, have their axes in the same order.
bool same_order(const View& dense, const View& view);
// Whether two elements of an array may lie in one place.
bool overlaps_itself(const View& view);

// The axes of a gradient in the order of its parameter's memory. None where it lies there like its parameter.
std::vector<Axis> axes_of(const View& param, const View& grad);

// The first and the last byte but one of an array of any strides.
std::pair<const char*, const char*> extent_of(const View& view);

}  // namespace fusedstep
