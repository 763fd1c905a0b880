// Which arrays of a call share memory: refused where one of them is written.
#pragma once

#include "binding/arrays/view.h"

namespace fusedstep {

// A stretch of memory in use by an array of the call, which `id` tells from others.
struct Span {
    const char* begin;
    const char* end;
    size_t id;
};
void add_span(std::vector<Span>& spans, const View& view, size_t id);
void sort(std::vector<Span>& spans);
// Two overlapping spans among two sorted lists, or {nullptr, nullptr}.
std::pair<const Span*, const Span*> find_overlap(const std::vector<Span>& a, const std::vector<Span>& b);
[[noreturn]] void refuse_overlap(const Name& a, const Name& b);

}  // namespace fusedstep
