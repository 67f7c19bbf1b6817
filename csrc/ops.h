// What an op is given, in plain C++: no Python, no CUDA types. One struct an op, one function a backend.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastxfer {

// A batch of episodes and where their inner products lie.
//
// Inner products are those of embeddings minus the pool's mean. Either one Gram matrix serves all episodes
// (gram_episode = 0, indices are rows of the pool), or every episode has a block of its own of m rows (its support)
// and m + q columns (its support, then its queries), and indices are positions in the block.
struct Episodes {
    std::int64_t count;  // episodes
    int m;               // support images of an episode
    int q;               // query images of an episode
    int ways;            // classes

    const void* gram;
    bool gram_is_double;        // else float
    std::int64_t gram_row;      // numbers from one row to the next
    std::int64_t gram_episode;  // numbers from one episode's block to the next; 0: shared

    const std::int64_t* support;  // (count, m); stride 0: shared by all episodes
    std::int64_t support_episode;
    const std::int64_t* query;  // (count, q)
    std::int64_t query_episode;
    const std::int32_t* labels;  // (count, m), 0 … ways-1
    std::int64_t labels_episode;

    // Per image: what the mean took from its inner products, x_i·x_j = gram_ij + offset_i + offset_j; one over its
    // length (0 for a zero vector); and its squared distance from the pool's mean.
    const double* offset;
    const double* inverse_length;
    const double* square;
    std::int64_t image_episode;  // from one episode's images to the next; 0: shared

    float* scores;  // (count, settings, q, ways)
};

struct LogisticParams {
    Episodes episodes;
    int n_l2;
    const double* l2;  // largest first, so that each solution starts the next
    const int* place;  // where each stands in the answer
    double tol;
    int max_iter;
    const double* class_weight;  // (ways), of an image's loss; null: 1
    bool balanced;               // instead m/(classes seen · images of the class), as scikit-learn's "balanced"
    double* objective;           // (count, n_l2)
    std::int32_t* iterations;    // (count, n_l2)
    bool* converged;             // (count, n_l2)
    bool* doubtful;  // (count): rounding of the inner products may have moved the objective by more than tol
    double*
        coefficients;  // (count, n_l2, ways, m), of the support's centred embeddings in the weights; null: not asked
    double* bias;      // (count, n_l2, ways)
};

struct RidgeParams {
    Episodes episodes;
    int n_l2;
    const double* l2;
    bool* doubtful;  // (count): rounding of the inner products may have moved a score by more than some 1e-4
};

struct PrototypeParams {
    Episodes episodes;
    bool cosine;
};

struct KnnParams {
    Episodes episodes;
    int n_k;
    const int* k;        // ascending
    int k_max;           // the last of them
    double temperature;  // 0: every vote counts one
    bool by_distance;    // votes count 1/(1 - similarity) instead
};

// The k images of largest inner product with each query: a list a share of the images, largest first, of equals the
// lower row first; where a share has fewer than k images, row -1 at minus infinity.
struct NeighboursParams {
    std::int64_t n;
    std::int64_t q;
    std::int64_t dim;
    const float* images;  // (n, dim)
    const float* query;   // (q, dim)
    int k;
    std::int64_t shares;  // of the images, so that few queries keep many teams busy
    float* products;      // (q, shares, k)
    std::int64_t* rows;   // (q, shares, k)

    static constexpr int tile = 64;  // queries that a team takes, and images that it looks at, at a time
    std::int64_t items() const { return (q + tile - 1) / tile * shares; }
};

enum class Number { float16, float32, float64 };

// Embeddings of a pool about its mean, or float16 as they are stored, whose mean is taken off as they are read.
struct Embeddings {
    const void* data;  // (n, dim)
    std::int64_t row;  // numbers from one image to the next
    Number number;
    const float* mean;  // (dim) of float16, else null
};

// Inner products of episodes that share no Gram matrix: out (count, m, m + q), as Episodes wants them.
struct ProductsParams {
    std::int64_t count;
    int m;
    int q;
    std::int64_t dim;
    Embeddings images;
    const std::int64_t* support;  // (count, m)
    const std::int64_t* query;    // (count, q)
    void* out;                    // double where the images are, else float
};

// Scores of queries by weights, W = coefficients · support, instead of by inner products with the support: cheaper
// where the rows of W are few.
struct WeightsParams {
    std::int64_t count;
    int rows;  // of W
    int m;
    int q;
    std::int64_t dim;
    Embeddings images;
    const std::int64_t* support;  // (count, m)
    const std::int64_t* query;    // (count, q)
    const double* coefficients;   // (count, rows, m)
    const double* bias;           // (count, rows)
    int ways;                     // rows = settings · ways
    float* scores;                // (count, settings, q, ways)
};

// Products of n images with c vectors, c small.
struct SkinnyParams {
    std::int64_t n;
    std::int64_t dim;
    int c;
    const void* images;    // (n, dim)
    std::int64_t row;      // numbers from one image to the next
    bool is_double;        // all three, else float
    const void* few;       // (c, dim) weights, or (c, n) residuals
    std::int64_t few_row;  // numbers from one of its rows to the next
    void* out;             // (c, n) logits, or (c, dim) gradient
    std::int64_t out_row;
};

// A look at a pool's embeddings, a block of rows at a time (the last may be shorter).
struct ExamineParams {
    std::int64_t n;
    std::int64_t dim;
    const void* images;  // (n, dim)
    Number number;
    std::int64_t block;     // rows of a block
    double* sums;           // (blocks, dim): of its rows
    std::uint64_t* digest;  // (n): equal rows have equal ones, others rarely
    bool* finite;           // (n)
};

// A pool's embeddings about their mean, in an order of the pool's own.
struct CentreParams {
    std::int64_t n;
    std::int64_t dim;
    const void* images;  // (n, dim)
    Number number;
    const std::int64_t* order;  // (n): rows of images
    const double* mean;         // (dim)
    double mean_square;
    void* out;             // (n, dim), or null: not asked
    std::int64_t out_row;  // numbers from one of its rows to the next
    bool out_is_double;
    double* square;  // (n) each, as Episodes wants them
    double* offset;
    double* inverse_length;
};

// One set of instructions of the CPU: the same core, compiled for it. An op solves one episode on one thread with the
// memory it is given; `wide` asks for double precision throughout. `logistic` says whether every penalty converged.
struct CpuKernels {
    const char* name;
    std::size_t (*logistic_bytes)(const LogisticParams&, bool wide);
    bool (*logistic)(const LogisticParams&, std::int64_t episode, void* memory, bool wide);
    std::size_t (*ridge_bytes)(const RidgeParams&);
    void (*ridge)(const RidgeParams&, std::int64_t episode, void* memory);
    std::size_t (*prototype_bytes)(const PrototypeParams&);
    void (*prototype)(const PrototypeParams&, std::int64_t episode, void* memory);
    std::size_t (*knn_bytes)(const KnnParams&);
    void (*knn)(const KnnParams&, std::int64_t episode, void* memory);
    std::size_t (*neighbours_bytes)(const NeighboursParams&);
    void (*neighbours)(const NeighboursParams&, std::int64_t item, void* memory);
    std::size_t (*products_bytes)(const ProductsParams&);
    void (*products)(const ProductsParams&, std::int64_t episode, void* memory);
    std::size_t (*weights_bytes)(const WeightsParams&);
    void (*weights)(const WeightsParams&, std::int64_t episode, void* memory);
    void (*skinny_logits)(const SkinnyParams&, std::int64_t first, std::int64_t last);    // images
    void (*skinny_gradient)(const SkinnyParams&, std::int64_t first, std::int64_t last);  // dimensions
    std::size_t (*examine_bytes)(const ExamineParams&);
    void (*examine)(const ExamineParams&, std::int64_t block, void* memory);
    std::size_t (*centre_bytes)(const CentreParams&);
    void (*centre)(const CentreParams&, std::int64_t row, void* memory);
};

// The best set that this processor has (or the one named by FASTXFER_ISA: baseline, avx2, avx512).
const CpuKernels& cpu_kernels();

// Solve episodes first … last-1 on `threads` threads.
void logistic_cpu(const LogisticParams&, std::int64_t first, std::int64_t last, int threads);
void ridge_cpu(const RidgeParams&, std::int64_t first, std::int64_t last, int threads);
void prototype_cpu(const PrototypeParams&, std::int64_t first, std::int64_t last, int threads);
void knn_cpu(const KnnParams&, std::int64_t first, std::int64_t last, int threads);
void neighbours_cpu(const NeighboursParams&, std::int64_t first, std::int64_t last, int threads);
void products_cpu(const ProductsParams&, std::int64_t first, std::int64_t last, int threads);
void weights_cpu(const WeightsParams&, std::int64_t first, std::int64_t last, int threads);

// On the caller's thread.
void skinny_logits_cpu(const SkinnyParams&);
void skinny_gradient_cpu(const SkinnyParams&);

// Look at blocks, centre rows first … last-1 on `threads` threads.
void examine_cpu(const ExamineParams&, std::int64_t first, std::int64_t last, int threads);
void centre_cpu(const CentreParams&, std::int64_t first, std::int64_t last, int threads);

// The same on a GPU (cuda/kernels.cu). Every pointer of the params is to device memory, `memory` too: `blocks` times
// the bytes that one block of threads needs. Queued on `stream` (a cudaStream_t), nothing is waited for. Null, or what
// went wrong.
int cuda_devices();  // 0 where there is no driver
std::size_t logistic_cuda_bytes(const LogisticParams&, bool wide);
const char* logistic_cuda(const LogisticParams&, bool wide, void* memory, std::size_t bytes, int blocks, void* stream);
std::size_t ridge_cuda_bytes(const RidgeParams&);
const char* ridge_cuda(const RidgeParams&, void* memory, std::size_t bytes, int blocks, void* stream);
std::size_t prototype_cuda_bytes(const PrototypeParams&);
const char* prototype_cuda(const PrototypeParams&, void* memory, std::size_t bytes, int blocks, void* stream);
std::size_t knn_cuda_bytes(const KnnParams&);
const char* knn_cuda(const KnnParams&, void* memory, std::size_t bytes, int blocks, void* stream);
std::size_t neighbours_cuda_bytes(const NeighboursParams&);
const char* neighbours_cuda(const NeighboursParams&, void* memory, std::size_t bytes, int blocks, void* stream);

}  // namespace fastxfer
