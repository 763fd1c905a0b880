#include "binding/arrays/overlap.h"

#include <algorithm>

namespace fusedstep {

void add_span(std::vector<Span>& spans, const View& view, size_t id) {
    if (view.size && view.data) spans.push_back({view.data, view.data + view.bytes(), id});
}

void sort(std::vector<Span>& spans) {
    auto before = [](const Span& a, const Span& b) { return a.begin < b.begin; };
    if (!std::is_sorted(spans.begin(), spans.end(), before)) std::sort(spans.begin(), spans.end(), before);
}

std::pair<const Span*, const Span*> find_overlap(const std::vector<Span>& a, const std::vector<Span>& b) {
    const Span* furthest = nullptr;
    for (size_t i = 0, j = 0; i < a.size() || j < b.size();) {
        const Span* next = j == b.size() || (i < a.size() && a[i].begin <= b[j].begin) ? &a[i++] : &b[j++];
        if (furthest && next->begin < furthest->end) return {furthest, next};
        furthest = next;  // spans so far do not overlap, so the last one ends last
    }
    return {nullptr, nullptr};
}

void refuse_overlap(const Name& a, const Name& b) {
    throw py::value_error(a.text() + " overlaps " + b.text() + " in memory, expected separate arrays");
}

}  // namespace fusedstep
