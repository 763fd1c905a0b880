#include "binding/arrays/overlap.h"

#include <algorithm>

#include "binding/arrays/layout.h"

namespace fusedstep {

void WrittenMemory::clear() {
    spans_.clear();
    gap_ = {};
}

void WrittenMemory::add(const View& view, size_t id) {
    if (!view.size || !view.data) return;
    const auto [begin, end] = extent_of(view);
    spans_.push_back({begin, end, id});
}

std::optional<std::pair<size_t, size_t>> WrittenMemory::sort() {
    if (!std::ranges::is_sorted(spans_, {}, &Span::begin)) std::ranges::sort(spans_, {}, &Span::begin);
    for (size_t i = 1; i < spans_.size(); ++i)
        if (spans_[i].begin < spans_[i - 1].end) return std::pair{spans_[i - 1].id, spans_[i].id};
    return std::nullopt;
}

std::optional<size_t> WrittenMemory::find(const View& view) {
    if (!view.size || !view.data) return std::nullopt;
    const auto [begin, end] = extent_of(view);
    if (begin >= gap_.begin && end <= gap_.end) return std::nullopt;
    const auto next = std::ranges::upper_bound(spans_, begin, {}, &Span::end);
    if (next != spans_.end() && next->begin < end) return next->id;
    gap_.begin = next == spans_.begin() ? nullptr : std::prev(next)->end;
    gap_.end = next == spans_.end() ? reinterpret_cast<const char*>(UINTPTR_MAX) : next->begin;
    return std::nullopt;
}

void refuse_overlap(const Name& a, const Name& b, const char* remedy) {
    throw py::value_error(a.text() + " overlaps " + b.text() + " in memory, expected separate arrays" + remedy);
}

}  // namespace fusedstep
