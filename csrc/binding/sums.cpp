#include "binding/sums.h"

#include <algorithm>

#include "binding/arrays/layout.h"
#include "binding/arrays/overlap.h"
#include "binding/gil.h"
#include "element/float_mode.h"
#include "element/norm.h"
#include "engine.h"

namespace fusedstep {

py::array_t<double> sums_of_blocks(py::object array, py::object param, double unit) {
    const py::object seen = as_array(array, {"array"});
    const View view = look(seen, {"array"}, Use::kRead);
    if (view.device != kHost) refuse_device({"array"}, view.device, {"the sums"}, kHost);
    Type type = view.type();
    if (!param.is_none()) {
        const auto dtype = py::dtype::from_args(param);
        type = format_of(dtype.ptr()).type;
        if (!contains(kFloats, type))
            throw py::type_error("param is " + std::string(py::str(dtype)) +
                                 ", expected the dtype of a parameter, such as float32");
    }
    if (unit != 1 && !(unit == kLargeUnit && type == kFloat64))
        throw py::value_error("unit is " + std::string(py::repr(py::float_(unit))) +
                              ", expected 1.0, or 2.0**600 where squares of float64 overflow");
    Slot slot;
    View in_rows;
    in_rows.format = {view.type()};
    in_rows.set_extents(view.shape(), row_strides(view.shape(), kItemSize[view.type()]));
    const std::vector<Axis> axes = axes_of(in_rows, view);
    slot.grad_axes = axes.empty() ? nullptr : axes.data();
    slot.grad_axis_count = static_cast<int32_t>(axes.size());
    slot.arrays[kGrad] = view.data;
    slot.size = view.size;
    slot.types.grad = view.type();
    slot.types.param = type;
    py::array_t<double> sums(blocks_of(view.size));
    double* const to = sums.mutable_data();
    without_gil(view.bytes(), [&] { sum_blocks(slot, unit, to); });
    return sums;
}

double sum_of_sums(py::array_t<double, py::array::c_style> sums) {
    std::vector<double> copy(sums.data(), sums.data() + sums.size());
    FloatMode mode;
    mode.ieee();
    return total(copy.data(), static_cast<int64_t>(copy.size()));
}

void sum_parts(py::list arrays, py::object out) {
    if (arrays.empty()) throw py::value_error("arrays is empty, expected at least one array to sum");
    constexpr TypeSet kSums = set_of(kFloat32, kFloat64);
    Name out_name{"out"};
    out = as_array(std::move(out), out_name);
    const View sum = look(out, out_name, Use::kUpdated, {nullptr, {kFloat32}, kSums, {"a sum"}});
    if (sum.device != kHost) refuse_device(out_name, sum.device, {"the sum"}, kHost);
    if (!sum.in_rows) throw py::value_error("out is not contiguous row by row, expected it so, as from np.empty");
    WrittenMemory written;
    written.add(sum, 0);
    written.sort();

    const TypeSet types = sum.type() == kFloat64 ? set_of(kFloat64) : set_of(kFloat32) | kNarrow;
    std::vector<py::object> held;  // another thread may change the list
    for (py::handle array : arrays) held.push_back(py::reinterpret_borrow<py::object>(array));
    std::vector<Summand> parts;
    int64_t bytes = sum.bytes();
    for (size_t i = 0; i < held.size(); ++i) {
        const py::int_ key(i);
        const Name name{"arrays", key};
        held[i] = as_array(std::move(held[i]), name);
        const View view = look(held[i], name, Use::kRead, {&sum, sum.format, types, out_name});
        const auto itemsize = static_cast<uintptr_t>(kItemSize[view.type()]);
        if (view.size && reinterpret_cast<uintptr_t>(view.data) % itemsize != 0)
            throw py::value_error(name.text() + " is unaligned, expected an address that is a multiple of " +
                                  std::to_string(itemsize) + " bytes, as a copy has it");
        if (!view.in_rows)
            throw py::value_error(name.text() + " is not contiguous row by row, expected it so, as a copy is");
        const bool is_out = view.data == sum.data && view.type() == sum.type();
        if (!is_out && written.find(view)) refuse_overlap(name, out_name, ", or the very same one");
        parts.push_back({view.data, view.type()});
        bytes += view.bytes();
    }
    without_gil(bytes, [&] { sum_parts(parts, sum.size, sum.type(), sum.data); });
}

std::vector<SquareSum> square_sums(py::object sums, size_t tensors) {
    if (sums.is_none()) return {};
    if (!py::isinstance<py::array_t<double>>(sums))
        throw py::type_error("sums is of type " + std::string(py::str(py::type::of(sums))) +
                             " or another dtype, expected a float64 array");
    const auto array = py::array_t<double, py::array::c_style>::ensure(sums);
    if (!array || array.ndim() != 2 || static_cast<size_t>(array.shape(0)) != tensors || array.shape(1) != 2)
        throw py::value_error("sums has shape " + std::string(py::str(sums.attr("shape"))) + ", expected (" +
                              std::to_string(tensors) + ", 2): a sum of squares and its unit for each parameter");
    std::vector<SquareSum> found;
    const auto numbers = array.unchecked<2>();
    for (size_t i = 0; i < tensors; ++i) {
        found.push_back({numbers(i, 0), numbers(i, 1)});
        const auto [sum, unit] = found.back();
        if (sum < 0 || (unit != 1 && unit != kLargeUnit))
            throw py::value_error("sums[" + std::to_string(i) + "] is (" + std::string(py::repr(py::float_(sum))) +
                                  ", " + std::string(py::repr(py::float_(unit))) +
                                  "), expected a sum of squares, not negative, and 1.0 or 2.0**600 as its unit");
    }
    return found;
}

}  // namespace fusedstep
