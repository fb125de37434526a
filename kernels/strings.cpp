// The strings of vocabularies: hundreds of thousands of short ones, for each of which a step in Python takes longer
// than all that is done here.
#include "arrays.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <nanobind/stl/pair.h>
#include <random>
#include <string_view>

namespace bitconv {
namespace {

using Strings = nb::typed<nb::list, nb::str>;

constexpr size_t length_bytes = 8;

/// The bytes of a str in UTF-8, for as long as it lives. Its data are null, and an error is set, where it has none.
std::string_view utf8(nb::handle text) {
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    return {data, data == nullptr ? 0 : static_cast<size_t>(size)};
}

uint64_t length_at(const char* data) {
    uint64_t length = 0;
    for (size_t i = length_bytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(data[i]);
    return length;
}

std::pair<Strings, size_t> decode_strings(nb::bytes data, size_t start, size_t count) {
    Strings strings;
    while (strings.size() < count && start <= data.size() && data.size() - start >= length_bytes) {
        const uint64_t length = length_at(data.c_str() + start);
        if (length > data.size() - start - length_bytes) break;
        const char* from = data.c_str() + start + length_bytes;
        PyObject* text = PyUnicode_DecodeUTF8(from, static_cast<Py_ssize_t>(length), nullptr);
        if (text == nullptr) {
            PyErr_Clear();
            break;
        }
        strings.append(nb::steal(text));
        start += length_bytes + length;
    }
    return {strings, start};
}

nb::bytes encode_strings(Strings strings) {
    size_t total = 0;
    for (nb::handle text : strings) {
        const std::string_view bytes = utf8(text);
        if (bytes.data() == nullptr) throw nb::python_error();
        total += length_bytes + bytes.size();
    }
    nb::bytes out = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(total)));
    if (!out.is_valid()) throw nb::python_error();
    char* at = PyBytes_AsString(out.ptr());
    for (nb::handle text : strings) {
        const std::string_view bytes = utf8(text);
        const uint64_t size = bytes.size();
        for (size_t i = 0; i < length_bytes; i++) *at++ = static_cast<char>(size >> 8 * i);
        at = std::copy(bytes.begin(), bytes.end(), at);
    }
    return out;
}

/// A set of strings that are kept elsewhere. What comes from a stranger cannot be made to collide: each set has a seed.
class StringSet {
public:
    explicit StringSet(size_t most) {
        size_t slots = 16;
        while (slots < 2 * most) slots *= 2;
        slots_.resize(slots);
        std::random_device random;
        seed_ = static_cast<uint64_t>(random()) << 32 | random();
    }

    void insert(std::string_view text) {
        const uint64_t hash = hashed(text);
        slot(text, hash) = {hash, text};
    }

    bool contains(std::string_view text) { return slot(text, hashed(text)).text.data() != nullptr; }

private:
    struct Slot {
        uint64_t hash = 0;  // which tells most texts apart without a look at where they are kept
        std::string_view text;
    };

    Slot& slot(std::string_view text, uint64_t hash) {
        for (uint64_t at = hash;; at++) {
            Slot& found = slots_[at & (slots_.size() - 1)];
            if (found.text.data() == nullptr || (found.hash == hash && found.text == text)) return found;
        }
    }

    uint64_t hashed(std::string_view text) const {
        uint64_t mixed = seed_ + text.size();
        const auto mix = [&mixed](uint64_t part) {
            mixed = (mixed ^ part) * 0x9E3779B97F4A7C15;  // odd: 2^64 by the golden ratio
            mixed ^= mixed >> 32;
        };
        uint64_t part = 0;
        size_t i = 0;
        for (; i + 8 <= text.size(); i += 8) {
            std::memcpy(&part, text.data() + i, 8);
            mix(part);
        }
        part = 0;
        for (; i < text.size(); i++) part = part << 8 | static_cast<unsigned char>(text[i]);
        mix(part);
        return mixed;
    }

    std::vector<Slot> slots_;
    uint64_t seed_;
};

int64_t faulty_merge(Strings tokens, Strings merges) {
    StringSet known(tokens.size());
    for (nb::handle token : tokens) {
        const std::string_view text = utf8(token);
        if (text.data() == nullptr) throw nb::python_error();
        known.insert(text);
    }
    std::string whole;
    int64_t rank = 0;
    for (nb::handle merge : merges) {
        const std::string_view text = utf8(merge);
        if (text.data() == nullptr) throw nb::python_error();
        const size_t space = std::min(text.find(' '), text.size());
        const std::string_view left = text.substr(0, space), right = text.substr(std::min(space + 1, text.size()));
        whole.assign(left).append(right);
        if (!known.contains(left) || !known.contains(right) || !known.contains(whole)) return rank;
        rank++;
    }
    return -1;
}

}  // namespace

void define_strings(nb::module_& m) {
    m.def("decode_strings", &decode_strings, "data"_a, "start"_a, "count"_a,
          R"(Read strings as GGUF has them: a uint64 in little endian, and so many bytes of UTF-8.

Returns `count` of them from byte `start` on, and where the next one begins. There are fewer where `data` ends before,
or where one is not UTF-8.)");

    m.def("encode_strings", &encode_strings, "strings"_a,
          "Return the bytes of strings as GGUF has them. UnicodeEncodeError for a surrogate without its pair.");

    m.def("faulty_merge", &faulty_merge, "tokens"_a, "merges"_a,
          R"(Return the index of the first merge, "LEFT RIGHT", that is not of two tokens that make a third, or -1.

A merge is parted at its first space. UnicodeEncodeError for a surrogate without its pair.)");
}

}  // namespace bitconv
