// What a pool is made of, in two passes over its embeddings as they lie: `examine_rows` looks at a block of them,
// `centre_rows` takes their mean off. Every sum is one row's, or one block's, in a fixed order: threads change no bit.
#pragma once

#include <cmath>
#include <type_traits>

#include "../ops.h"
#include "half.h"

namespace FX_NAMESPACE {

using fastxfer::CentreParams;
using fastxfer::ExamineParams;

// Row i of embeddings as numbers to compute with: where it lies, or widened into `scratch` (dim).
template <class Stored>
const auto* row_of(const void* images, std::int64_t i, std::int64_t dim, void* scratch) {
    const Stored* row = static_cast<const Stored*>(images) + i * dim;
    if constexpr (std::is_same_v<Stored, Half>) {
        widen(row, nullptr, dim, static_cast<float*>(scratch));
        return static_cast<const float*>(scratch);
    } else {
        (void)scratch;
        return row;
    }
}

template <class Params>
std::size_t scratch_bytes(const Params& p) {
    return p.number == fastxfer::Number::float16 ? static_cast<std::size_t>(p.dim) * sizeof(float) : 0;
}

// Column sums of a block of rows; for each row whether it is finite, and a number that equal rows share.
template <class Stored>
void examine_rows(const ExamineParams& p, std::int64_t block, void* scratch) {
    using Real = computed_in<Stored>;
    using Word = std::conditional_t<sizeof(Real) == 4, std::uint32_t, std::uint64_t>;
    constexpr int lanes = 16;
    double* sums = p.sums + block * p.dim;
    for (std::int64_t k = 0; k < p.dim; ++k) sums[k] = 0;
    const std::int64_t last = (block + 1) * p.block < p.n ? (block + 1) * p.block : p.n;
    for (std::int64_t i = block * p.block; i < last; ++i) {
        const Real* row = row_of<Stored>(p.images, i, p.dim, scratch);
#pragma omp simd
        for (std::int64_t k = 0; k < p.dim; ++k) sums[k] += row[k];
        Word words[lanes] = {};
        Real zero = 0;  // stays so while what it is added to is finite
        const std::int64_t whole = p.dim / lanes * lanes;
        for (std::int64_t k = 0; k < whole; k += lanes) {
            for (int lane = 0; lane < lanes; ++lane) {
                const Real value = row[k + lane] + Real(0);  // −0 becomes 0
                Word word;
                memcpy(&word, &value, sizeof word);
                words[lane] += word;
            }
        }
#pragma omp simd reduction(+ : zero)
        for (std::int64_t k = 0; k < p.dim; ++k) zero += row[k] * Real(0);
        for (std::int64_t k = whole; k < p.dim; ++k) {
            const Real value = row[k] + Real(0);
            Word word;
            memcpy(&word, &value, sizeof word);
            words[k - whole] += word * 3;
        }
        std::uint64_t digest = 0;
        for (const Word word : words) digest = (digest ^ word) * 0x9E3779B97F4A7C15u + 1;
        p.digest[i] = digest;
        p.finite[i] = zero == 0;
    }
}

// Row of place `i`: minus the mean, its square, its offset and one over its length before.
template <class Stored, class Out>
void centre_row(const CentreParams& p, std::int64_t i, void* scratch) {
    const auto* row = row_of<Stored>(p.images, p.order[i], p.dim, scratch);
    const double* mean = p.mean;
    [[maybe_unused]] Out* out = nullptr;
    if constexpr (!std::is_void_v<Out>) out = static_cast<Out*>(p.out) + i * p.out_row;
    double length = 0, square = 0, along = 0;
#pragma omp simd reduction(+ : length, square, along)
    for (std::int64_t k = 0; k < p.dim; ++k) {
        const double value = row[k], centred = value - mean[k];
        length += value * value;
        square += centred * centred;
        along += centred * mean[k];
        if constexpr (!std::is_void_v<Out>) out[k] = static_cast<Out>(centred);
    }
    p.square[i] = square;
    p.offset[i] = along + 0.5 * p.mean_square;
    p.inverse_length[i] = length > 0 ? 1 / std::sqrt(length) : 0;
}

}  // namespace FX_NAMESPACE
