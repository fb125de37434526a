// The matrices of a model as a file holds them, multiplied with float32 vectors.
#pragma once
#include "../kernels.hpp"

#include <memory>

namespace bitconv {

/// A ternary matrix whose products with int8 vectors are exact, in the layout that the file has it in. The bytes belong
/// to others.
class Operand {
public:
    const size_t rows, cols, row_multiple;

    virtual ~Operand() = default;

    /// Bytes of a vector in the order in which multiply takes it.
    virtual size_t ordered_bytes() const = 0;
    virtual void order(const int8_t* x, size_t n, uint8_t* ordered) const = 0;
    /// Whether vectors are ordered for the other as for this.
    virtual bool same_order(const Operand& other) const = 0;

    /// Of the rows first to last - 1, multiples of row_multiple: out[v * stride + r - first].
    virtual void multiply(size_t first, size_t last, const uint8_t* ordered, size_t n, int32_t* out,
                          size_t stride) const = 0;
    /// int8 [last - first, cols].
    virtual void unpack(size_t first, size_t last, int8_t* trits) const = 0;

    /// Bytes of weights in a row.
    virtual size_t row_bytes() const = 0;

protected:
    Operand(size_t rows, size_t cols, size_t row_multiple) : rows(rows), cols(cols), row_multiple(row_multiple) {}
};

using OperandPtr = std::shared_ptr<const Operand>;

OperandPtr row_operand(const RowLayout& layout, const uint8_t* packed, size_t rows, size_t cols);
OperandPtr tl1_operand(const uint8_t* packed, size_t rows, size_t cols, const Tiles& tiles);
OperandPtr tl2_operand(const Tl2In& packed, size_t rows, size_t cols, const Tiles& tiles);
/// Of trits as they are, for shapes that no packed layout takes.
OperandPtr plain_operand(const int8_t* trits, size_t rows, size_t cols);

/// Vectors x float32 [n, cols], and for each operand of a matrix that rounds them in its order.
struct Vectors {
    const float* x;
    size_t n;
    const float* divisors;                  ///< [n], that the rounded ones are divided by
    std::vector<const uint8_t*> ordered;
};

/// Memory that a thread works in.
class Scratch {
public:
    /// So many elements, whose contents are undefined, until the next call with the same number.
    template <class T>
    T* get(size_t number, size_t count) {
        std::unique_ptr<Buffer>& buffer = buffers_[number];
        if (!buffer || sizes_[number] < count * sizeof(T)) {
            sizes_[number] = count * sizeof(T) + count * sizeof(T) / 4;
            buffer = std::make_unique<Buffer>(sizes_[number]);
        }
        return reinterpret_cast<T*>(buffer->data());
    }

private:
    static constexpr size_t most = 24;
    std::unique_ptr<Buffer> buffers_[most];
    size_t sizes_[most] = {};
};

class Matrix {
public:
    const size_t rows, cols, row_multiple, row_bytes;

    virtual ~Matrix() = default;

    /// out[v * stride + r - first] for the rows first to last - 1, first a multiple of row_multiple.
    virtual void multiply(size_t first, size_t last, const Vectors& vectors, float* out, size_t stride,
                          Scratch& scratch) const = 0;

    /// What it takes rounded vectors for, one for each group of columns with scales of its own; none where it takes
    /// floats.
    virtual const std::vector<OperandPtr>& operands() const { return none_; }

protected:
    Matrix(size_t rows, size_t cols, size_t row_multiple, size_t row_bytes)
        : rows(rows), cols(cols), row_multiple(row_multiple), row_bytes(row_bytes) {}

    const Kernels& kernels_ = active();

private:
    const std::vector<OperandPtr> none_;
};

using MatrixPtr = std::shared_ptr<const Matrix>;

/// Rounds vectors to int8. scales: one, or [rows, operands], and the operands are groups of columns side by side.
MatrixPtr rounding_matrix(std::vector<OperandPtr> operands, const float* scales, bool one_scale);
/// The same matrix, with vectors that are not rounded.
MatrixPtr unrounding_matrix(std::vector<OperandPtr> operands, const float* scales, bool one_scale);
MatrixPtr float_matrix(const uint8_t* bytes, Float type, size_t rows, size_t cols);
/// block, block_bytes: values and bytes of the type's blocks.
MatrixPtr quantized_matrix(const uint8_t* bytes, Quant type, size_t block, size_t block_bytes, size_t rows, size_t cols);

}  // namespace bitconv
