// A team solves one episode together: a CPU thread alone, a block of GPU threads, or, in tests, a few CPU threads.
//
// A team has rank() and size(), sync() (a barrier; also makes writes visible), and sum(x), which gives every member the
// sum over members, added in rank order, so that the same input gives the same bits.
// width<Real> numbers are worked on at a time by one member (the lanes of a vector register; 1 on a GPU), and
// panel<Real> columns of a matrix are stored together.
#pragma once

// FX_FUNCTION: a few lines, always inlined. FX_BODY: a function of its own, so that building stays quick.
#ifdef __CUDACC__
#define FX_FUNCTION __host__ __device__ __forceinline__
#define FX_BODY __host__ __device__ __noinline__
#else
#define FX_FUNCTION inline __attribute__((always_inline))
#define FX_BODY __attribute__((noinline)) inline
#endif

// The same text is compiled for several instruction sets; each gets a namespace of its own, so that the linker can't
// hand code of one to another.
#ifndef FX_NAMESPACE
#define FX_NAMESPACE fastxfer_core
#endif

#ifndef FX_REGISTER_BYTES
#define FX_REGISTER_BYTES 16
#endif

namespace FX_NAMESPACE {

struct SerialTeam {
    template <class Real>
    static constexpr int width = FX_REGISTER_BYTES / sizeof(Real);
    template <class Real>
    static constexpr int panel = 2 * width<Real>;

    FX_FUNCTION int rank() const { return 0; }
    FX_FUNCTION int size() const { return 1; }
    FX_FUNCTION void sync() const {}
    FX_FUNCTION double sum(double x) const { return x; }
};

}  // namespace FX_NAMESPACE
