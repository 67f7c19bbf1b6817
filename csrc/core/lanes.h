// Numbers side by side: a vector of W of them, or one (W = 1), in the same text. Arithmetic, comparison and `mask ? a :
// b` are the compiler's own for both.
#pragma once

#include <cstdint>
#include <cstring>

#include "team.h"

namespace FX_NAMESPACE {

template <class Real, int W>
struct Lanes;

template <>
struct Lanes<float, 1> {
    using V = float;
    using I = std::int32_t;
};
template <>
struct Lanes<double, 1> {
    using V = double;
    using I = std::int64_t;
};

#ifdef __GNUC__
#define FX_LANES(Real, Int, W)                                         \
    template <>                                                        \
    struct Lanes<Real, W> {                                            \
        typedef Real V __attribute__((vector_size(W * sizeof(Real)))); \
        typedef Int I __attribute__((vector_size(W * sizeof(Int))));   \
    }
FX_LANES(float, std::int32_t, 4);
FX_LANES(float, std::int32_t, 8);
FX_LANES(float, std::int32_t, 16);
FX_LANES(double, std::int64_t, 2);
FX_LANES(double, std::int64_t, 4);
FX_LANES(double, std::int64_t, 8);
#undef FX_LANES
#endif

template <class V, class Real>
FX_FUNCTION V load(const Real* p) {
    V v;
    memcpy(&v, p, sizeof(V));
    return v;
}

// The first `count` numbers, zeros behind them.
template <class V, class Real>
FX_FUNCTION V load_some(const Real* p, int count) {
    Real lane[sizeof(V) / sizeof(Real)] = {};
    for (int i = 0; i < count; ++i) lane[i] = p[i];
    return load<V>(lane);
}

template <class V, class Real>
FX_FUNCTION void store(Real* p, const V& v) {
    memcpy(p, &v, sizeof(V));
}

// Ask for memory that will be read soon; nothing happens where there is no such thing.
FX_FUNCTION void prefetch(const void* p) {
#if defined(__GNUC__) && !defined(__CUDA_ARCH__)
    __builtin_prefetch(p);
#else
    (void)p;
#endif
}

template <class To, class From>
FX_FUNCTION To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

// The sum of the lanes, in order of halves.
template <class Real, int W>
FX_FUNCTION Real across(typename Lanes<Real, W>::V v) {
    if constexpr (W == 1) {
        return v;
    } else {
        Real lane[W];
        store(lane, v);
        for (int half = W / 2; half > 0; half /= 2) {
            for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
        }
        return lane[0];
    }
}

template <class V>
FX_FUNCTION V larger(V a, V b) {
    return a > b ? a : b;
}

template <class Real>
struct Format;

template <>
struct Format<float> {
    static constexpr float magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer in the low bits
    static constexpr float ln2_high = 0.693145751953125f, ln2_low = 1.42860682030941723212e-6f;
    static constexpr float smallest = -87.0f;  // exp of less is no normal number
    static constexpr int mantissa = 23, terms = 7, log_terms = 5;
    static constexpr std::int32_t one = 0x3f800000, root_half = 0x3f3504f3;
    static constexpr float epsilon = 1.1920929e-7f;
};

template <>
struct Format<double> {
    static constexpr double magic = 6755399441055744.0;  // 1.5·2^52
    static constexpr double ln2_high = 0.69314718036912381649, ln2_low = 1.9082149292705877e-10;
    static constexpr double smallest = -708.0;
    static constexpr int mantissa = 52, terms = 13, log_terms = 11;
    static constexpr std::int64_t one = 0x3ff0000000000000, root_half = 0x3fe6a09e667f3bcd;
    static constexpr double epsilon = 2.220446049250313e-16;
};

// exp(x) for x ≤ 88 (double: 709), relative error of about one rounding; x below `smallest` counts as that.
// x = n·ln 2 + r, |r| ≤ ln(2)/2; Taylor's series of exp(r); 2^n by adding n to the exponent's bits.
template <class Real, int W>
FX_FUNCTION typename Lanes<Real, W>::V exponential(typename Lanes<Real, W>::V x) {
    using V = typename Lanes<Real, W>::V;
    using I = typename Lanes<Real, W>::I;
    using F = Format<Real>;
    x = larger<V>(x, V{} + F::smallest);
    const V shifted = x * Real(1.44269504088896340736) + F::magic;
    const V n = shifted - F::magic;
    const V r = (x - n * F::ln2_high) - n * F::ln2_low;
    V series = V{} + Real(1);
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int k = F::terms; k >= 1; --k) series = series * r * Real(1.0 / k) + Real(1);
    return bits<V>(bits<I>(series) + (bits<I>(shifted) << F::mantissa));
}

// log(1 + x) for x ≥ 0 to full relative accuracy, tiny x included.
// With u = 1 + x rounded: log u + (x - (u - 1)) / u; log u = n·ln 2 + 2 atanh((f - 1)/(f + 1)), u = f·2^n, f around 1.
template <class Real, int W>
FX_FUNCTION typename Lanes<Real, W>::V log_one_plus(typename Lanes<Real, W>::V x) {
    using V = typename Lanes<Real, W>::V;
    using I = typename Lanes<Real, W>::I;
    using F = Format<Real>;
    const V u = x + Real(1);
    const I above = bits<I>(u) - F::root_half;
    const I exponent = above >> F::mantissa;
    const V f = bits<V>(bits<I>(u) - (exponent << F::mantissa));
    // An integer of few bits becomes a floating number by way of the magic number's mantissa.
    const V n = bits<V>(exponent + bits<I>(V{} + F::magic)) - F::magic;
    const V s = (f - Real(1)) / (f + Real(1));
    const V s2 = s * s;
    V series = V{};
    for (int k = F::log_terms; k >= 1; --k) series = (series + Real(1.0 / (2 * k + 1))) * s2;
    const V lost = (x - (u - Real(1))) / u;
    return n * F::ln2_high + (Real(2) * s + (Real(2) * s * series + (n * F::ln2_low + lost)));
}

}  // namespace FX_NAMESPACE
