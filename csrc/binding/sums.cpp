#include "binding/sums.h"

#include <algorithm>

#include "binding/arrays/layout.h"
#include "binding/arrays/overlap.h"
#include "binding/gil.h"
#include "element/float_mode.h"
#include "element/norm.h"
#include "engine.h"

namespace fusedstep {

View look_at_summand(py::object& array, const Name& name, const Like& like) {
    array = as_array(std::move(array), name);
    View view = look(array, name, Use::kRead, like);
    const auto itemsize = static_cast<uintptr_t>(kItemSize[view.type()]);
    if (view.size && reinterpret_cast<uintptr_t>(view.data) % itemsize != 0)
        throw py::value_error(name.text() + " is unaligned, expected an address that is a multiple of " +
                              std::to_string(itemsize) + " bytes, as a copy has it");
    if (!view.in_rows)
        throw py::value_error(name.text() + " is not contiguous row by row, expected it so, as a copy is");
    return view;
}

py::array_t<double> sums_of_blocks(py::object array, py::object param, double unit) {
    std::vector<py::object> held;  // another thread may change the list
    const bool is_sum = PyList_CheckExact(array.ptr());
    if (is_sum)
        for (py::handle summand : py::cast<py::list>(array))
            held.push_back(py::reinterpret_borrow<py::object>(summand));
    else
        held = {as_array(array, {"array"})};
    if (held.empty()) throw py::value_error("array is empty, expected at least one array to sum");
    const View view = is_sum ? look_at_summand(held[0], {"array"}, {}) : look(held[0], {"array"}, Use::kRead);
    if (view.device != kHost) refuse_device({"array"}, view.device, {"the sums"}, kHost);
    Type type = is_sum && contains(kNarrow, view.type()) ? kFloat32 : view.type();
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
    std::vector<Summand> summands{{view.data, view.type()}};
    const Like like{&view, view.format, summed_in(computed_in(type)), {"array"}};
    for (size_t i = 1; i < held.size(); ++i) {
        const View other = look_at_summand(held[i], {"array", py::int_(i)}, like);
        summands.push_back({other.data, other.type()});
    }
    if (is_sum && !contains(like.types, view.type()))
        throw py::type_error("array is a list of another type than sums for param, expected that of the computation");
    if (summands.size() > 1) {
        slot.summands = summands.data();
        slot.summand_count = static_cast<int32_t>(summands.size());
    }
    py::array_t<double> sums(blocks_of(view.size));
    double* const to = sums.mutable_data();
    without_gil(view.bytes() * static_cast<int64_t>(held.size()), [&] { sum_blocks(slot, unit, to); });
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

    const Like like{&sum, sum.format, summed_in(sum.type()), out_name};
    std::vector<py::object> held;  // another thread may change the list
    for (py::handle array : arrays) held.push_back(py::reinterpret_borrow<py::object>(array));
    std::vector<Summand> parts;
    int64_t bytes = sum.bytes();
    for (size_t i = 0; i < held.size(); ++i) {
        const py::int_ key(i);
        const Name name{"arrays", key};
        const View view = look_at_summand(held[i], name, like);
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
