// Which instruction set serves, and episodes shared out over threads. One thread solves an episode from beginning to
// end, so the number of threads changes no bit of the answer.
#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "../ops.h"

namespace fastxfer {

extern const CpuKernels baseline;
#ifdef FX_X86_KERNELS
extern const CpuKernels avx2;
extern const CpuKernels avx512;
#endif

namespace {

// The best set, or the best whose registers are no wider than 32 bytes.
const CpuKernels& choose(bool narrow) {
    const char* wanted = std::getenv("FASTXFER_ISA");
    (void)wanted, (void)narrow;
#ifdef FX_X86_KERNELS
    const auto may = [wanted](const char* name) { return wanted == nullptr || std::strcmp(wanted, name) == 0; };
    __builtin_cpu_init();
    narrow = narrow && may("avx2");
    if (!narrow && may("avx512") && __builtin_cpu_supports("x86-64-v4")) return avx512;
    if (may("avx2") && __builtin_cpu_supports("x86-64-v3")) return avx2;
#endif
    return baseline;
}

// A block of memory that grows; its contents do not survive growing.
class Memory {
  public:
    Memory() = default;
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() { std::free(block_); }

    void* at_least(std::size_t bytes) {
        if (bytes > size_) {
            std::free(block_);
            size_ = (bytes + 63) / 64 * 64;
            block_ = std::aligned_alloc(64, size_);
            if (block_ == nullptr) size_ = 0;
        }
        return block_;
    }

  private:
    void* block_ = nullptr;
    std::size_t size_ = 0;
};

// solve(episode, memory) for all episodes; throws std::bad_alloc if a thread gets no memory.
template <class Solve>
void share_out(std::int64_t first, std::int64_t last, int threads, std::size_t bytes, const Solve& solve) {
    bool out_of_memory = false;
#pragma omp parallel num_threads(threads)
    {
        Memory memory;
        void* block = memory.at_least(bytes);
#pragma omp for schedule(dynamic)
        for (std::int64_t e = first; e < last; ++e) {
            if ((bytes > 0 && block == nullptr) || !solve(e, block)) {
#pragma omp atomic write
                out_of_memory = true;
            }
        }
    }
    if (out_of_memory) throw std::bad_alloc();
}

// An op of which an episode cannot fail.
template <class Params>
void run_op(std::size_t (*bytes)(const Params&), void (*op)(const Params&, std::int64_t, void*), const Params& params,
            std::int64_t first, std::int64_t last, int threads) {
    share_out(first, last, threads, bytes(params), [&](std::int64_t e, void* block) {
        op(params, e, block);
        return true;
    });
}

}  // namespace

const CpuKernels& cpu_kernels() {
    static const CpuKernels& chosen = choose(false);
    return chosen;
}

void logistic_cpu(const LogisticParams& params, std::int64_t first, std::int64_t last, int threads) {
    // Rows of m + 1 numbers that fill no more than half a register are quicker in smaller ones.
    static const CpuKernels& narrow = choose(true);
    const CpuKernels& use = params.episodes.m < 8 ? narrow : cpu_kernels();
    share_out(first, last, threads, use.logistic_bytes(params, false), [&](std::int64_t e, void* block) {
        if (use.logistic(params, e, block, false) || params.episodes.gram_is_double) return true;
        // Rounding stood between float and the tolerance: once more, in double.
        Memory memory;
        void* wide = memory.at_least(use.logistic_bytes(params, true));
        if (wide == nullptr) return false;
        use.logistic(params, e, wide, true);
        return true;
    });
}

void ridge_cpu(const RidgeParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    run_op(use.ridge_bytes, use.ridge, params, first, last, threads);
}

void prototype_cpu(const PrototypeParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    run_op(use.prototype_bytes, use.prototype, params, first, last, threads);
}

void knn_cpu(const KnnParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    run_op(use.knn_bytes, use.knn, params, first, last, threads);
}

void neighbours_cpu(const NeighboursParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    run_op(use.neighbours_bytes, use.neighbours, params, first, last, threads);
}

void products_cpu(const ProductsParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    run_op(use.products_bytes, use.products, params, first, last, threads);
}

void weights_cpu(const WeightsParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    run_op(use.weights_bytes, use.weights, params, first, last, threads);
}

namespace {

// Stretches of 0 … n-1 whose images, or sums, stay in the cache.
void by_stretches(void (*work)(const SkinnyParams&, std::int64_t, std::int64_t), const SkinnyParams& params,
                  std::int64_t n, std::int64_t stretch) {
    for (std::int64_t first = 0; first < n; first += stretch) {
        work(params, first, first + stretch < n ? first + stretch : n);
    }
}

}  // namespace

void skinny_logits_cpu(const SkinnyParams& params) {
    by_stretches(cpu_kernels().skinny_logits, params, params.n, 64);
}

void skinny_gradient_cpu(const SkinnyParams& params) {
    by_stretches(cpu_kernels().skinny_gradient, params, params.dim, 256);
}

void examine_cpu(const ExamineParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    run_op(use.examine_bytes, use.examine, params, first, last, threads);
}

void centre_cpu(const CentreParams& params, std::int64_t first, std::int64_t last, int threads) {
    const CpuKernels& use = cpu_kernels();
    constexpr std::int64_t rows = 64;  // at a time: a row alone is little work
    share_out(0, (last - first + rows - 1) / rows, threads, use.centre_bytes(params),
              [&](std::int64_t block, void* memory) {
                  const std::int64_t from = first + block * rows, to = from + rows < last ? from + rows : last;
                  for (std::int64_t i = from; i < to; ++i) use.centre(params, i, memory);
                  return true;
              });
}

}  // namespace fastxfer
