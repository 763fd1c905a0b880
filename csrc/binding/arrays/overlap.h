// Which arrays of a call share memory: refused where one of them is written.
#pragma once

#include <optional>

#include "binding/arrays/view.h"

namespace fusedstep {

// The memory of the arrays that a call writes. Each array has an id by which a message can name it.
class WrittenMemory {
public:
    void clear();
    void add(const View& view, size_t id);
    // Be ready for `find`. Returns the ids of two arrays that overlap, if there are any.
    std::optional<std::pair<size_t, size_t>> sort();
    // The id of an array that overlaps another one, which is only read.
    std::optional<size_t> find(const View& view);

private:
    struct Span {
        const char* begin;
        const char* end;
        size_t id;
    };
    // A stretch without an array. Arrays that were made one after the other often lie in the same one, so that most are
    // found without a search.
    struct Gap {
        const char* begin;
        const char* end;
    };

    std::vector<Span> spans_;
    Gap gap_ = {};
};

[[noreturn]] void refuse_overlap(const Name& a, const Name& b, const char* remedy = "");

}  // namespace fusedstep
