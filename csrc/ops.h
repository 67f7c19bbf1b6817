// What the backends compute, in plain structs: pointers, sizes, strides in elements. No pybind11, no CUDA types.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fastxfer {

// Inner products of one episode: element (i, j) is data[episode * stride + i * ld + j]. A pool's Gram matrix has stride
// 0 and is addressed by pool rows; blocks made an episode at a time are addressed by position.
template <class Scalar>
struct View {
    const Scalar* data;
    int64_t ld, stride;
};

// E episodes of m support images and q queries. `*_at` address the views, `*_row` are rows of the pool (for norms).
// A stride of 0 shares the array between all episodes.
template <class Scalar>
struct Episodes {
    int64_t count;
    int m, q, ways;
    View<Scalar> support, cross;  // support(i, j); cross(query, j)
    const int32_t *support_at, *query_at;
    int64_t support_at_stride, query_at_stride;
    const int32_t *support_row, *query_row;
    int64_t support_row_stride, query_row_stride;
    const int32_t* labels;  // 0 ... ways-1
    int64_t label_stride;
    const double* square;  // (pool,) squared norm of the centred embedding
    const double* offset;  // (pool,) raw inner product = centred one + offset[i] + offset[j]
};

template <class Scalar>
struct LogisticParams {
    Episodes<Scalar> episodes;
    const double* l2;  // (n_l2,), largest first
    int n_l2;
    double tol;  // relative gap to the optimum
    int max_iter;
    Scalar* scores;       // (E, n_l2, q, ways)
    double* objective;    // (E, n_l2)
    int32_t* iterations;  // (E, n_l2)
    uint8_t* converged;   // (E, n_l2)
};

template <class Scalar>
struct RidgeParams {
    Episodes<Scalar> episodes;
    const double* l2;
    int n_l2;
    Scalar* scores;  // (E, n_l2, q, ways)
};

template <class Scalar>
struct PrototypeParams {
    Episodes<Scalar> episodes;
    bool cosine;
    Scalar* scores;  // (E, q, ways)
};

template <class Scalar>
struct KnnParams {
    Episodes<Scalar> episodes;
    const int32_t* k;  // (n_k,), ascending, each in 1 ... m
    int n_k;
    double temperature;  // 0: every neighbour has one vote
    Scalar* scores;      // (E, n_k, q, ways)
};

// Solves episodes first <= e < last. `first` is a multiple of 16, so that the grouping of episodes, and with it every
// bit of the answer, does not depend on how a run is cut up.
namespace cpu {
const char* isa();
void logistic(const LogisticParams<float>&, int64_t first, int64_t last, int n_threads);
void logistic(const LogisticParams<double>&, int64_t first, int64_t last, int n_threads);
void ridge(const RidgeParams<float>&, int64_t first, int64_t last, int n_threads);
void ridge(const RidgeParams<double>&, int64_t first, int64_t last, int n_threads);
void prototype(const PrototypeParams<float>&, int64_t first, int64_t last, int n_threads);
void prototype(const PrototypeParams<double>&, int64_t first, int64_t last, int n_threads);
void knn(const KnnParams<float>&, int64_t first, int64_t last, int n_threads);
void knn(const KnnParams<double>&, int64_t first, int64_t last, int n_threads);
}  // namespace cpu

// All pointers are device pointers; `workspace` is device memory of the size that the *_workspace function names;
// `stream` is a cudaStream_t. One launch over all episodes, nothing is waited for. Returns a cudaError_t.
namespace cuda {
int device_count();
const char* error_name(int error);
template <class Params>
size_t workspace(const Params& params);
template <class Params>
int run(const Params& params, void* workspace, size_t bytes, void* stream);
}  // namespace cuda

}  // namespace fastxfer
