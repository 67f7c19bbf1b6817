// float16 embeddings as they are stored, widened to float on the way to where they are used.
#pragma once

#ifdef __F16C__
#include <immintrin.h>
#endif

#include <type_traits>

#include "../core/lanes.h"

namespace FX_NAMESPACE {

struct Half {
    std::uint16_t bits;
};

// The type that embeddings are computed with.
template <class Stored>
using computed_in = std::conditional_t<std::is_same_v<Stored, double>, double, float>;

// Exact: a float has room for every float16, subnormal ones, infinities and NaN included.
FX_FUNCTION float widened(Half half) {
    std::uint32_t magnitude = (half.bits & 0x7fffu) << 13;
    if (magnitude >= 0x0f800000u) magnitude |= 0x7f800000u;
    const float value = bits<float>(magnitude) * 0x1p112f;  // the exponents' offsets are 15 and 127
    return (half.bits & 0x8000u) != 0 ? -value : value;
}

#if FX_REGISTER_BYTES == 64 && defined(__AVX512F__)
FX_FUNCTION Lanes<float, 16>::V widened_lanes(const Half* from) {
    // Without a mask GCC 12 warns of its own header.
    return (Lanes<float, 16>::V)_mm512_maskz_cvtph_ps(0xffff,
                                                      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
#elif FX_REGISTER_BYTES == 32 && defined(__F16C__)
FX_FUNCTION Lanes<float, 8>::V widened_lanes(const Half* from) {
    return (Lanes<float, 8>::V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
#else
FX_FUNCTION Lanes<float, SerialTeam::width<float> >::V widened_lanes(const Half* from) {
    constexpr int W = SerialTeam::width<float>;
    float value[W];
    for (int i = 0; i < W; ++i) value[i] = widened(from[i]);
    return load<Lanes<float, W>::V>(value);
}
#endif

// to[k] := from[k] - mean[k], rounded once (mean null: from[k]). `next` will be wanted soon.
inline void widen(const Half* from, const float* mean, std::int64_t dim, float* to, const Half* next = nullptr) {
    std::int64_t k = 0;
    constexpr int W = SerialTeam::width<float>;
    using V = Lanes<float, W>::V;
    for (; k + W <= dim; k += W) {
        const V value = widened_lanes(from + k);
        if (next != nullptr) prefetch(next + k);
        store(to + k, mean == nullptr ? value : value - load<V>(mean + k));
    }
    for (; k < dim; ++k) to[k] = mean == nullptr ? widened(from[k]) : widened(from[k]) - mean[k];
}

// Rows of an odd number of cache lines: were they a power of two apart, as embeddings often are, the same numbers of
// all rows would share one set of the cache.
template <class Real>
FX_FUNCTION std::int64_t spread_row(std::int64_t dim) {
    constexpr std::int64_t line = 64 / sizeof(Real);
    return ((dim + line - 1) / line | 1) * line;
}

}  // namespace FX_NAMESPACE
