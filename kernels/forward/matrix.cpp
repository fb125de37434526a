#include "matrix.hpp"

#include <cstring>

namespace bitconv {

namespace {

class RowOperand final : public Operand {
public:
    RowOperand(const RowLayout& layout, const uint8_t* packed, size_t rows, size_t cols)
        : Operand(rows, cols, 1), layout_(layout), packed_(packed) {}

    size_t ordered_bytes() const override { return layout_.ordered_bytes(cols); }
    void order(const int8_t* x, size_t n, uint8_t* ordered) const override { layout_.order(x, cols, n, ordered); }
    bool same_order(const Operand& other) const override {
        const auto* rows = dynamic_cast<const RowOperand*>(&other);
        return rows && &rows->layout_ == &layout_ && rows->cols == cols;
    }
    void multiply(size_t first, size_t last, const uint8_t* ordered, size_t n, int32_t* out,
                  size_t stride) const override {
        layout_.multiply(packed_ + layout_.bytes(first, cols), last - first, cols, ordered, n, out, stride);
    }
    void unpack(size_t first, size_t last, int8_t* trits) const override {
        std::vector<float> scales(layout_.scales(last - first, cols));
        layout_.unpack(packed_ + layout_.bytes(first, cols), last - first, cols, trits, scales.data());
    }
    size_t row_bytes() const override { return layout_.bytes(1, cols); }

private:
    const RowLayout& layout_;
    const uint8_t* packed_;
};

/// Part: moves the start of the packed bytes by so many rows.
template <class Layout, class Packed>
class TiledOperand final : public Operand {
public:
    using Part = Packed (*)(const Packed& packed, size_t rows, size_t cols, const Tiles& tiles);

    TiledOperand(const Layout& layout, const Packed& packed, size_t rows, size_t cols, const Tiles& tiles, Part part)
        : Operand(rows, cols, tiles.bm), layout_(layout), packed_(packed), tiles_(tiles), part_(part) {}

    size_t ordered_bytes() const override { return layout_.ordered_bytes(cols); }
    void order(const int8_t* x, size_t n, uint8_t* ordered) const override {
        layout_.order(x, cols, n, tiles_, ordered);
    }
    bool same_order(const Operand& other) const override {
        const auto* tiled = dynamic_cast<const TiledOperand*>(&other);
        return tiled && &tiled->layout_ == &layout_ && tiled->cols == cols && tiled->tiles_.bk == tiles_.bk;
    }
    void multiply(size_t first, size_t last, const uint8_t* ordered, size_t n, int32_t* out,
                  size_t stride) const override {
        layout_.multiply(part_(packed_, first, cols, tiles_), last - first, cols, tiles_, ordered, n, out, stride);
    }
    void unpack(size_t first, size_t last, int8_t* trits) const override {
        layout_.unpack(part_(packed_, first, cols, tiles_), last - first, cols, tiles_, trits);
    }
    size_t row_bytes() const override { return cols / 4; }

private:
    const Layout& layout_;
    const Packed packed_;
    const Tiles tiles_;
    const Part part_;
};

class PlainOperand final : public Operand {
public:
    PlainOperand(const int8_t* trits, size_t rows, size_t cols)
        : Operand(rows, cols, 1), kernels_(active()), trits_(trits) {}

    size_t ordered_bytes() const override { return cols; }
    void order(const int8_t* x, size_t n, uint8_t* ordered) const override { std::memcpy(ordered, x, n * cols); }
    bool same_order(const Operand& other) const override {
        return dynamic_cast<const PlainOperand*>(&other) && other.cols == cols;
    }
    void multiply(size_t first, size_t last, const uint8_t* ordered, size_t n, int32_t* out,
                  size_t stride) const override {
        const size_t count = last - first;
        std::vector<int32_t> products(n * count);
        kernels_.matmul(trits_ + first * cols, reinterpret_cast<const int8_t*>(ordered), products.data(), count, cols, n);
        for (size_t v = 0; v < n; ++v) std::memcpy(out + v * stride, &products[v * count], count * sizeof *out);
    }
    void unpack(size_t first, size_t last, int8_t* trits) const override {
        std::memcpy(trits, trits_ + first * cols, (last - first) * cols);
    }
    size_t row_bytes() const override { return cols; }

private:
    const Kernels& kernels_;
    const int8_t* trits_;
};

/// What the products with int8 vectors and with floats have in common: matrices side by side, and their scales.
class TernaryMatrix : public Matrix {
public:
    TernaryMatrix(std::vector<OperandPtr> operands, const float* scales, bool one_scale)
        : Matrix(operands[0]->rows, operands.size() * operands[0]->cols, operands[0]->row_multiple,
                 operands.size() * operands[0]->row_bytes()),
          groups_(std::move(operands)), scales_(scales), stride_(one_scale ? 0 : groups_.size()) {}

protected:
    const float* scales(size_t row, size_t group) const { return scales_ + row * stride_ + (stride_ ? group : 0); }

    const std::vector<OperandPtr> groups_;
    const float* const scales_;
    const size_t stride_;
};

class RoundingMatrix final : public TernaryMatrix {
public:
    using TernaryMatrix::TernaryMatrix;

    const std::vector<OperandPtr>& operands() const override { return groups_; }

    void multiply(size_t first, size_t last, const Vectors& vectors, float* out, size_t stride,
                  Scratch& scratch) const override {
        const size_t count = last - first, n = vectors.n;
        int32_t* sums = scratch.get<int32_t>(0, n * count);
        if (groups_.size() == 1) {
            groups_[0]->multiply(first, last, vectors.ordered[0], n, sums, count);
            for (size_t v = 0; v < n; ++v) {
                kernels_.steps.scale_sums(sums + v * count, count, scales(first, 0), stride_, vectors.divisors[v],
                                          out + v * stride);
            }
            return;
        }
        double* totals = scratch.get<double>(1, n * count);
        std::memset(totals, 0, n * count * sizeof *totals);
        for (size_t g = 0; g < groups_.size(); ++g) {
            groups_[g]->multiply(first, last, vectors.ordered[g], n, sums, count);
            for (size_t v = 0; v < n; ++v) {
                kernels_.steps.add_group(sums + v * count, count, scales(first, g), stride_, totals + v * count);
            }
        }
        for (size_t v = 0; v < n; ++v) {
            for (size_t r = 0; r < count; ++r) {
                out[v * stride + r] = static_cast<float>(totals[v * count + r]) / vectors.divisors[v];
            }
        }
    }
};

class UnroundingMatrix final : public TernaryMatrix {
public:
    using TernaryMatrix::TernaryMatrix;

    void multiply(size_t first, size_t last, const Vectors& vectors, float* out, size_t stride,
                  Scratch& scratch) const override {
        const size_t count = last - first, width = groups_[0]->cols;
        int8_t* trits = scratch.get<int8_t>(0, count * width);
        uint8_t* rows = scratch.get<uint8_t>(1, count * cols * sizeof(float));
        for (size_t g = 0; g < groups_.size(); ++g) {
            groups_[g]->unpack(first, last, trits);
            for (size_t r = 0; r < count; ++r) {
                uint8_t* to = rows + (r * cols + g * width) * sizeof(float);
                kernels_.dequantize(trits + r * width, width, scales(first + r, g), width, to, Float::f32);
            }
        }
        kernels_.float_matmul(rows, Float::f32, vectors.x, out, stride, count, cols, vectors.n);
    }
};

class FloatMatrix final : public Matrix {
public:
    FloatMatrix(const uint8_t* bytes, Float type, size_t rows, size_t cols)
        : Matrix(rows, cols, 1, cols * (type == Float::f32 ? 4 : 2)), bytes_(bytes), type_(type) {}

    void multiply(size_t first, size_t last, const Vectors& vectors, float* out, size_t stride, Scratch&) const override {
        kernels_.float_matmul(bytes_ + first * row_bytes, type_, vectors.x, out, stride, last - first, cols, vectors.n);
    }

private:
    const uint8_t* bytes_;
    const Float type_;
};

class QuantizedMatrix final : public Matrix {
public:
    QuantizedMatrix(const uint8_t* bytes, Quant type, size_t block, size_t block_bytes, size_t rows, size_t cols)
        : Matrix(rows, cols, 1, cols / block * block_bytes), bytes_(bytes), type_(type) {}

    void multiply(size_t first, size_t last, const Vectors& vectors, float* out, size_t stride,
                  Scratch& scratch) const override {
        const size_t count = last - first;
        float* rows = scratch.get<float>(0, count * cols);
        kernels_.dequantize_blocks(bytes_ + first * row_bytes, count * cols, type_, rows);
        const uint8_t* raw = reinterpret_cast<const uint8_t*>(rows);
        kernels_.float_matmul(raw, Float::f32, vectors.x, out, stride, count, cols, vectors.n);
    }

private:
    const uint8_t* bytes_;
    const Quant type_;
};

}  // namespace

OperandPtr row_operand(const RowLayout& layout, const uint8_t* packed, size_t rows, size_t cols) {
    return std::make_shared<RowOperand>(layout, packed, rows, cols);
}

OperandPtr tl1_operand(const uint8_t* packed, size_t rows, size_t cols, const Tiles& tiles) {
    using Packed = const uint8_t*;
    const auto part = [](const Packed& start, size_t r, size_t columns, const Tiles&) { return start + r * columns / 4; };
    return std::make_shared<TiledOperand<Tl1, Packed>>(active().tl1, packed, rows, cols, tiles, part);
}

OperandPtr tl2_operand(const Tl2In& packed, size_t rows, size_t cols, const Tiles& tiles) {
    const auto part = [](const Tl2In& start, size_t r, size_t columns, const Tiles& t) {
        const size_t two = columns % t.bk, three = columns - two;
        return Tl2In{start.values + r * three / 6, start.signs + r * three / 24, start.pairs + r * two / 4};
    };
    return std::make_shared<TiledOperand<Tl2, Tl2In>>(active().tl2, packed, rows, cols, tiles, part);
}

OperandPtr plain_operand(const int8_t* trits, size_t rows, size_t cols) {
    return std::make_shared<PlainOperand>(trits, rows, cols);
}

MatrixPtr rounding_matrix(std::vector<OperandPtr> operands, const float* scales, bool one_scale) {
    return std::make_shared<RoundingMatrix>(std::move(operands), scales, one_scale);
}

MatrixPtr unrounding_matrix(std::vector<OperandPtr> operands, const float* scales, bool one_scale) {
    return std::make_shared<UnroundingMatrix>(std::move(operands), scales, one_scale);
}

MatrixPtr float_matrix(const uint8_t* bytes, Float type, size_t rows, size_t cols) {
    return std::make_shared<FloatMatrix>(bytes, type, rows, cols);
}

MatrixPtr quantized_matrix(const uint8_t* bytes, Quant type, size_t block, size_t block_bytes, size_t rows, size_t cols) {
    return std::make_shared<QuantizedMatrix>(bytes, type, block, block_bytes, rows, cols);
}

}  // namespace bitconv
