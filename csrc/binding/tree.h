// The arguments `params` and `grads`: one array, or containers of arrays, of any depth.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

namespace fusedstep {

namespace py = pybind11;

// The structure of `params`, and the key of each of its leaves. A leaf at the top has the key that it has there, and a
// single array the key 0; the key of any other leaf is its path, such as "encoder/0/W".
class Tree {
public:
    // Raises TypeError for what is no container of arrays, ValueError where two leaves have one key.
    explicit Tree(py::handle params);

    const py::list& keys() const { return keys_; }
    bool is_one_array() const { return nodes_.front().kind == kLeaf; }
    // Whether all containers are plain dicts, lists and tuples, which give the same items each time they are asked.
    bool is_plain() const { return is_plain_; }

    // Append the leaves of `params`. Returns false where `params` has another structure.
    bool collect(py::handle params, std::vector<py::object>& leaves) const { return collect(0, params, leaves); }
    // Append a gradient for each leaf, None where there is none. Raises TypeError or ValueError, with the first path
    // at which the structures part.
    void collect_gradients(py::handle grads, std::vector<py::object>& leaves) const;

private:
    enum Kind : int8_t { kLeaf, kSequence, kMapping };
    // A container or leaf. The nodes of its items follow it, each with its own items.
    struct Node {
        Kind kind;
        size_t count = 0;   // items
        size_t names = 0;   // where the names of the items begin in `names_`, for a mapping
        size_t end = 0;     // the first node after all that belong to this one
        size_t leaves = 0;  // leaves below
    };
    // The items of a container: of a mapping a dict, of a sequence a list or tuple.
    struct Items {
        Kind kind;
        py::object items;
        bool plain;
    };
    // The names of the containers around an object, for messages.
    using Path = std::vector<py::handle>;

    static Items open(py::handle object, const std::string& name);
    static Items open_as(Kind kind, py::handle object, const char* role, const Path& path);
    static std::string name_of(const char* role, const Path& path);
    void add(py::handle object, Path& path);
    void add_key(const Path& path);
    bool collect(size_t at, py::handle object, std::vector<py::object>& leaves) const;
    void collect_gradients(size_t at, py::handle object, Path& path, std::vector<py::object>& leaves) const;
    void collect_named(const Node& node, py::handle dict, Path& path, std::vector<py::object>& leaves) const;

    std::vector<Node> nodes_;
    py::list names_, keys_;
    bool is_plain_ = true;
};

}  // namespace fusedstep
