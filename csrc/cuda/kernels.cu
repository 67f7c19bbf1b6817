// The ops on a GPU: a block of threads solves an episode with the same core as the CPU. Every pointer of the params is
// to device memory; one launch covers all episodes and nothing is waited for.
#define FX_NAMESPACE fastxfer_cuda
#include <cuda_runtime.h>

#include "../core/knn.h"
#include "../core/logistic.h"
#include "../core/neighbours.h"
#include "../core/prototype.h"
#include "../core/ridge.h"

namespace FX_NAMESPACE {

constexpr int threads = 128;
constexpr int warps = threads / 32;

struct BlockTeam {
    template <class Real>
    static constexpr int width = 1;
    template <class Real>
    static constexpr int panel = 32;  // neighbouring threads read neighbouring columns

    double* partial;  // shared memory, one number a warp

    __host__ __device__ __forceinline__ int rank() const {
#ifdef __CUDA_ARCH__
        return threadIdx.x;
#else
        return 0;
#endif
    }
    __host__ __device__ __forceinline__ int size() const { return threads; }
    __host__ __device__ __forceinline__ void sync() const {
#ifdef __CUDA_ARCH__
        __syncthreads();
#endif
    }
    // Always in the same order: halves within a warp, then warp by warp.
    __host__ __device__ __forceinline__ double sum(double x) const {
#ifdef __CUDA_ARCH__
        for (int half = 16; half > 0; half /= 2) x += __shfl_xor_sync(0xffffffffu, x, half);
        if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
        __syncthreads();
        x = 0;
        for (int warp = 0; warp < warps; ++warp) x += partial[warp];
        __syncthreads();
#endif
        return x;
    }
};

// Tiles of both go through shared memory, a few columns at a time; a thread adds up 8 x 4 entries in its registers.
__device__ __noinline__ void tile_products(const BlockTeam& team, int rows, const float* A, int columns, const float* B,
                                           std::int64_t dim, float* out) {
    constexpr int depth = 16, tall = 8, wide = 4, across = neighbour_tile / wide, row_of_banks = neighbour_tile + 4;
    static_assert(threads == neighbour_tile / tall * across, "every thread has its entries");
    __shared__ float left[depth][row_of_banks], right[depth][row_of_banks];
    const int row = team.rank() / across * tall, column = team.rank() % across * wide;
    float sum[tall][wide] = {};
    for (std::int64_t first = 0; first < dim; first += depth) {
        for (int at = team.rank(); at < neighbour_tile * depth; at += threads) {
            const int line = at / depth, k = at % depth;
            const bool inside = first + k < dim;
            left[k][line] = inside && line < rows ? A[line * dim + first + k] : 0.0f;
            right[k][line] = inside && line < columns ? B[line * dim + first + k] : 0.0f;
        }
        team.sync();
        for (int k = 0; k < depth; ++k) {
            float a[tall], b[wide];
            for (int r = 0; r < tall; ++r) a[r] = left[k][row + r];
            for (int c = 0; c < wide; ++c) b[c] = right[k][column + c];
            for (int r = 0; r < tall; ++r) {
                for (int c = 0; c < wide; ++c) sum[r][c] += a[r] * b[c];
            }
        }
        team.sync();
    }
    for (int r = 0; r < tall && row + r < rows; ++r) {
        for (int c = 0; c < wide && column + c < columns; ++c) {
            out[(row + r) * neighbour_tile + column + c] = sum[r][c];
        }
    }
}

// Blocks take items (episodes, mostly) in turn, each with memory of its own.
template <class Solve>
__device__ void share_out(std::int64_t count, char* memory, std::size_t bytes, const Solve& solve) {
    __shared__ double partial[warps];
    const BlockTeam team{partial};
    for (std::int64_t e = blockIdx.x; e < count; e += gridDim.x) {
        solve(team, e, memory + blockIdx.x * bytes);
        team.sync();
    }
}

template <class Real, class Gram>
__global__ void __launch_bounds__(threads) logistic_kernel(LogisticParams params, char* memory, std::size_t bytes) {
    share_out(params.episodes.count, memory, bytes, [&](const BlockTeam& team, std::int64_t e, void* block) {
        logistic_episode<Real, Gram>(team, params, e, block);
    });
}

template <class Gram>
__global__ void __launch_bounds__(threads) ridge_kernel(RidgeParams params, char* memory, std::size_t bytes) {
    share_out(params.episodes.count, memory, bytes,
              [&](const BlockTeam& team, std::int64_t e, void* block) { ridge_episode<Gram>(team, params, e, block); });
}

template <class Gram>
__global__ void __launch_bounds__(threads) prototype_kernel(PrototypeParams params, char* memory, std::size_t bytes) {
    share_out(params.episodes.count, memory, bytes, [&](const BlockTeam& team, std::int64_t e, void* block) {
        prototype_episode<Gram, Gram>(team, params, e, block);
    });
}

template <class Gram>
__global__ void __launch_bounds__(threads) knn_kernel(KnnParams params, char* memory, std::size_t bytes) {
    share_out(params.episodes.count, memory, bytes,
              [&](const BlockTeam& team, std::int64_t e, void* block) { knn_episode<Gram>(team, params, e, block); });
}

__global__ void __launch_bounds__(threads)
    neighbours_kernel(NeighboursParams params, std::int64_t items, char* memory, std::size_t bytes) {
    share_out(items, memory, bytes,
              [&](const BlockTeam& team, std::int64_t e, void* block) { neighbours_item(team, params, e, block); });
}

template <class Kernel, class... Arguments>
const char* launch(Kernel kernel, std::int64_t count, int blocks, void* stream, Arguments... arguments) {
    if (count == 0) return nullptr;
    const int grid = count < blocks ? static_cast<int>(count) : blocks;
    kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace FX_NAMESPACE

namespace fastxfer {

using namespace fastxfer_cuda;

int cuda_devices() {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();  // no driver: the error is not to be found by whoever asks next
        return 0;
    }
    return count;
}

std::size_t logistic_cuda_bytes(const LogisticParams& p, bool wide) {
    if (p.episodes.gram_is_double) return logistic_bytes<double, double, BlockTeam>(p);
    return wide ? logistic_bytes<double, float, BlockTeam>(p) : logistic_bytes<float, float, BlockTeam>(p);
}

const char* logistic_cuda(const LogisticParams& p, bool wide, void* memory, std::size_t bytes, int blocks,
                          void* stream) {
    const auto kernel = p.episodes.gram_is_double ? logistic_kernel<double, double>
                        : wide                    ? logistic_kernel<double, float>
                                                  : logistic_kernel<float, float>;
    return launch(kernel, p.episodes.count, blocks, stream, p, static_cast<char*>(memory), bytes);
}

std::size_t ridge_cuda_bytes(const RidgeParams& p) {
    return p.episodes.gram_is_double ? ridge_bytes<double, BlockTeam>(p) : ridge_bytes<float, BlockTeam>(p);
}

const char* ridge_cuda(const RidgeParams& p, void* memory, std::size_t bytes, int blocks, void* stream) {
    const auto kernel = p.episodes.gram_is_double ? ridge_kernel<double> : ridge_kernel<float>;
    return launch(kernel, p.episodes.count, blocks, stream, p, static_cast<char*>(memory), bytes);
}

std::size_t prototype_cuda_bytes(const PrototypeParams& p) {
    return p.episodes.gram_is_double ? prototype_bytes<double, double, BlockTeam>(p)
                                     : prototype_bytes<float, float, BlockTeam>(p);
}

const char* prototype_cuda(const PrototypeParams& p, void* memory, std::size_t bytes, int blocks, void* stream) {
    const auto kernel = p.episodes.gram_is_double ? prototype_kernel<double> : prototype_kernel<float>;
    return launch(kernel, p.episodes.count, blocks, stream, p, static_cast<char*>(memory), bytes);
}

std::size_t knn_cuda_bytes(const KnnParams& p) {
    return p.episodes.gram_is_double ? knn_bytes<double, BlockTeam>(p) : knn_bytes<float, BlockTeam>(p);
}

const char* knn_cuda(const KnnParams& p, void* memory, std::size_t bytes, int blocks, void* stream) {
    const auto kernel = p.episodes.gram_is_double ? knn_kernel<double> : knn_kernel<float>;
    return launch(kernel, p.episodes.count, blocks, stream, p, static_cast<char*>(memory), bytes);
}

std::size_t neighbours_cuda_bytes(const NeighboursParams& p) {
    return neighbours_bytes<BlockTeam>(p);
}

const char* neighbours_cuda(const NeighboursParams& p, void* memory, std::size_t bytes, int blocks, void* stream) {
    return launch(neighbours_kernel, p.items(), blocks, stream, p, p.items(), static_cast<char*>(memory), bytes);
}

}  // namespace fastxfer
