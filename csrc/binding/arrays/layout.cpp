#include "binding/arrays/layout.h"

#include <algorithm>
#include <numeric>

namespace fusedstep {

void View::set_extents(Lengths shape, Lengths strides) {
    const size_t n = shape.size();
    const py::ssize_t itemsize = kItemSize[format.type];
    extents = Extents(n + format.pairs);
    for (size_t i = 0; i < n; ++i) {
        extents.shape_at(i) = shape[i];
        extents.stride_at(i) = strides[i];
    }
    if (format.pairs) {
        extents.shape_at(n) = 2;
        extents.stride_at(n) = itemsize;
    }
    size = 1;
    in_rows = true;
    py::ssize_t expected = itemsize;
    for (size_t i = axes(); i--; expected *= this->shape()[i]) {
        size *= this->shape()[i];
        in_rows = in_rows && (this->shape()[i] == 1 || this->strides()[i] == expected);
    }
    in_rows = in_rows || size == 0;
}

std::vector<size_t> order_of(const View& view) {
    std::vector<size_t> order(view.axes());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](size_t a, size_t b) { return view.strides()[a] > view.strides()[b]; });
    return order;
}

std::vector<py::ssize_t> row_strides(Lengths shape, py::ssize_t itemsize) {
    std::vector<py::ssize_t> strides(shape.size());
    py::ssize_t stride = itemsize;
    for (size_t i = shape.size(); i--; stride *= std::max<py::ssize_t>(shape[i], 1)) strides[i] = stride;
    return strides;
}

bool is_dense(const View& view) {
    if (view.in_rows) return true;
    const std::vector<size_t> order = order_of(view);
    py::ssize_t expected = kItemSize[view.type()];
    for (size_t i = order.size(); i--; expected *= view.shape()[order[i]])
        if (view.shape()[order[i]] != 1 && view.strides()[order[i]] != expected) return false;
    return true;
}

bool same_order(const View& dense, const View& view) {
    if (dense.in_rows && view.in_rows) return true;
    const py::ssize_t a = kItemSize[dense.type()], b = kItemSize[view.type()];
    for (size_t i = 0; i < view.axes(); ++i)
        if (view.shape()[i] != 1 && dense.strides()[i] / a * b != view.strides()[i]) return false;
    return true;
}

bool overlaps_itself(const View& view) {
    if (view.size == 0) return false;
    std::vector<std::pair<py::ssize_t, py::ssize_t>> axes;
    for (size_t i = 0; i < view.axes(); ++i)
        if (view.shape()[i] != 1) axes.push_back({std::abs(view.strides()[i]), view.shape()[i]});
    std::ranges::sort(axes);
    py::ssize_t used = kItemSize[view.type()];  // bytes from the first to the last element of the faster axes
    for (auto [stride, n] : axes) {
        if (stride < used) return true;
        used += stride * (n - 1);
    }
    return false;
}

std::vector<Axis> axes_of(const View& param, const View& grad) {
    const py::ssize_t itemsize = kItemSize[grad.type()];
    const bool aligned = reinterpret_cast<uintptr_t>(grad.data) % static_cast<uintptr_t>(itemsize) == 0;
    std::vector<Axis> axes;
    if (grad.size == 0 || (param.in_rows && grad.in_rows && aligned)) return axes;
    for (size_t i : order_of(param)) {
        if (grad.shape()[i] == 1) continue;
        const Axis axis{grad.shape()[i], grad.strides()[i]};
        if (!axes.empty() && axes.back().stride == axis.size * axis.stride)
            axes.back() = {axes.back().size * axis.size, axis.stride};
        else
            axes.push_back(axis);
    }
    if (axes.empty() && !aligned) axes.push_back({1, itemsize});
    if (axes.size() == 1 && axes[0].stride == itemsize && aligned) axes.clear();
    return axes;
}

std::pair<const char*, const char*> extent_of(const View& view) {
    const char *begin = view.data, *end = view.data + (view.size ? kItemSize[view.type()] : 0);
    if (view.in_rows) return {begin, begin + view.bytes()};
    for (size_t i = 0; i < view.axes(); ++i) {
        const py::ssize_t reach = view.strides()[i] * (view.shape()[i] - 1);
        (reach < 0 ? begin : end) += reach;
    }
    return {begin, end};
}

}  // namespace fusedstep
