// JSON as large files of vocabularies have it: objects, arrays, strings, integers. Whatever else stands there, a fault
// above all, is left to Python's own parser, which has the words for it.
#include "arrays.hpp"

#include <cstring>
#include <string_view>

namespace bitconv {
namespace {

constexpr int kMostDepth = 50;
constexpr int kMostDigits = 18;  // of any int64

/// Each function returns an object that is not valid where it does not take what stands there.
class JsonReader {
public:
    explicit JsonReader(std::string_view text) : at_(text.data()), end_(text.data() + text.size()) {}

    nb::object document() {
        nb::object result = value(0);
        skip_space();
        return at_ == end_ ? result : nb::object();
    }

private:
    nb::object value(int depth) {
        skip_space();
        if (at_ == end_) return {};
        switch (*at_) {
            case '{': return object(depth + 1);
            case '[': return array(depth + 1);
            case '"': return string();
            case 't': return word("true", Py_True);
            case 'f': return word("false", Py_False);
            case 'n': return word("null", Py_None);
            default: return integer();
        }
    }

    nb::object object(int depth) {
        nb::dict out;
        if (depth > kMostDepth) return {};
        at_++;
        if (take('}')) return std::move(out);
        for (Py_ssize_t count = 1;; count++) {
            skip_space();
            if (at_ == end_ || *at_ != '"') return {};
            const nb::object key = string();
            if (!key.is_valid() || !take(':')) return {};
            const nb::object item = value(depth);
            if (!item.is_valid() || PyDict_SetItem(out.ptr(), key.ptr(), item.ptr()) != 0) return {};
            if (PyDict_Size(out.ptr()) != count) return {};  // the key stands twice
            if (!take(',')) break;
        }
        return take('}') ? std::move(out) : nb::object();
    }

    nb::object array(int depth) {
        nb::list out;
        if (depth > kMostDepth) return {};
        at_++;
        if (take(']')) return std::move(out);
        do {
            const nb::object item = value(depth);
            if (!item.is_valid() || PyList_Append(out.ptr(), item.ptr()) != 0) return {};
        } while (take(','));
        return take(']') ? std::move(out) : nb::object();
    }

    nb::object string() {
        const char* start = ++at_;
        skip_plain();
        if (at_ == end_) return {};
        if (*at_ == '"') return decoded({start, static_cast<size_t>(at_++ - start)});
        unescaped_.clear();
        while (true) {
            unescaped_.append(start, at_);
            if (at_ == end_) return {};
            if (*at_ == '"') break;
            if (*at_ != '\\' || !unescape()) return {};
            start = at_;
            skip_plain();
        }
        at_++;
        return decoded(unescaped_);
    }

    /// Up to what ends a string, begins an escape or may not stand in one.
    void skip_plain() {
        while (at_ < end_ && *at_ != '"' && *at_ != '\\' && static_cast<unsigned char>(*at_) >= 0x20) at_++;
    }

    static nb::object decoded(std::string_view text) {
        return nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr));
    }

    bool unescape() {
        static constexpr char kEscapes[] = "\"\\/bfnrt", kMeant[] = "\"\\/\b\f\n\r\t";
        at_++;
        if (at_ == end_ || *at_ == '\0') return false;
        const char escape = *at_++;
        if (escape == 'u') return unescape_utf16();
        const char* found = std::strchr(kEscapes, escape);
        if (found == nullptr) return false;
        unescaped_ += kMeant[found - kEscapes];
        return true;
    }

    /// Behind \u. No surrogate without its pair is taken.
    bool unescape_utf16() {
        uint32_t code = 0, low = 0;
        if (!hexadecimal(code)) return false;
        if (code >= 0xD800 && code < 0xE000) {
            if (code >= 0xDC00 || end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return false;
            at_ += 2;
            if (!hexadecimal(low) || low < 0xDC00 || low >= 0xE000) return false;
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        if (code < 0x80) {
            unescaped_ += static_cast<char>(code);
            return true;
        }
        const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;  // bytes of UTF-8 behind the first
        unescaped_ += static_cast<char>(0xFF00 >> (more + 1) | code >> 6 * more);
        for (int i = more; i-- > 0;) unescaped_ += static_cast<char>(0x80 | (code >> 6 * i & 0x3F));
        return true;
    }

    bool hexadecimal(uint32_t& code) {
        if (end_ - at_ < 4) return false;
        for (int i = 0; i < 4; i++) {
            const char c = *at_++, lower = static_cast<char>(c | 0x20);
            if (c >= '0' && c <= '9') code = code << 4 | static_cast<uint32_t>(c - '0');
            else if (lower >= 'a' && lower <= 'f') code = code << 4 | static_cast<uint32_t>(lower - 'a' + 10);
            else return false;
        }
        return true;
    }

    nb::object integer() {
        const bool negative = *at_ == '-';
        if (negative) at_++;
        const char* first = at_;
        long long number = 0;
        while (at_ < end_ && *at_ >= '0' && *at_ <= '9' && at_ - first <= kMostDigits) number = 10 * number + (*at_++ - '0');
        if (at_ == first || at_ - first > kMostDigits || (*first == '0' && at_ - first > 1)) return {};
        if (at_ < end_ && (*at_ == '.' || *at_ == 'e' || *at_ == 'E')) return {};
        return nb::steal(PyLong_FromLongLong(negative ? -number : number));
    }

    nb::object word(std::string_view word, PyObject* meant) {
        if (std::string_view(at_, static_cast<size_t>(end_ - at_)).substr(0, word.size()) != word) return {};
        at_ += word.size();
        return nb::borrow(meant);
    }

    bool take(char c) {
        skip_space();
        if (at_ == end_ || *at_ != c) return false;
        at_++;
        return true;
    }

    void skip_space() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) at_++;
    }

    const char* at_;
    const char* end_;
    std::string unescaped_;
};

}  // namespace

void define_json(nb::module_& m) {
    m.def("parse_json", [](nb::bytes data) {
        const int collected = PyGC_Disable();  // there is no garbage among new values, which it would look at again and again
        nb::object value = JsonReader({data.c_str(), data.size()}).document();
        if (collected) PyGC_Enable();
        if (!value.is_valid()) PyErr_Clear();
        return value.is_valid() ? value : nb::none();
    }, "data"_a, R"(Parse JSON that is plain: no floats, no integer of more than 18 digits, no object with a key twice, 50 levels at most.

Returns None of everything else, whether it is JSON or not.)");
}

}  // namespace bitconv
