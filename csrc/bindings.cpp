// Python's door to the ops: the only file that knows pybind11. It checks what would crash (types, shapes, ranges); what
// merely makes no sense is refused with better words by fastxfer/ops.py. The GIL is free while episodes are solved, and
// between blocks of them Ctrl-C is heard.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "ops.h"

namespace py = pybind11;
using fastxfer::Episodes;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& what) {
    if (!holds) throw std::invalid_argument(what);
}

template <class T>
void in_range(const Array<T>& values, std::int64_t below, const char* name) {
    const auto [low, high] = std::minmax_element(values.data(), values.data() + values.size());
    require(values.size() == 0 || (*low >= 0 && *high < below), std::string(name) + " out of range");
}

// Checked views of the arrays of one call. `gram` is (rows, images), its first images being its rows, for all
// episodes, or (count, m, m + q) with indices into the block.
struct Batch {
    Episodes episodes{};

    Batch(const py::array& gram, const Array<std::int64_t>& support, const Array<std::int64_t>& query,
          const Array<std::int32_t>& labels, const Array<double>& offset, const Array<double>& inverse_length,
          const Array<double>& square, std::int64_t count, int ways) {
        require(gram.flags() & py::array::c_style, "gram must be contiguous");
        require(py::isinstance<py::array_t<float>>(gram) || py::isinstance<py::array_t<double>>(gram),
                "gram must be float32 or float64");
        require(support.ndim() == 2 && query.ndim() == 2 && labels.ndim() == 2, "indices must have two dimensions");
        require(count >= 0 && ways >= 1, "count and ways must be positive");
        const py::ssize_t m = support.shape(1);
        require(m >= 1 && labels.shape(1) == m, "labels must match support");
        for (const py::ssize_t rows : {support.shape(0), query.shape(0), labels.shape(0)}) {
            require(rows == count || rows == 1, "arrays must have one row, or one an episode");
        }
        Episodes& e = episodes;
        e.count = count;
        e.m = static_cast<int>(m);
        e.q = static_cast<int>(query.shape(1));
        e.ways = ways;
        e.gram = gram.data();
        e.gram_is_double = py::isinstance<py::array_t<double>>(gram);
        const bool shared = gram.ndim() == 2;
        require(shared || (gram.ndim() == 3 && gram.shape(0) == count),
                "gram must be (rows, images) or (count, m, images)");
        const py::ssize_t rows = gram.shape(shared ? 0 : 1), images = gram.shape(shared ? 1 : 2);
        in_range(support, std::min(rows, images), "support");
        e.gram_episode = shared ? 0 : rows * images;
        e.gram_row = images;
        in_range(query, images, "query");
        in_range(labels, ways, "labels");
        for (const Array<double>* values : {&offset, &inverse_length, &square}) {
            require(values->ndim() == 2 && values->shape(1) == images && values->shape(0) == (shared ? 1 : count),
                    "values of images must match gram");
        }
        e.image_episode = shared ? 0 : images;
        e.support = support.data();
        e.query = query.data();
        e.labels = labels.data();
        e.support_episode = support.shape(0) == 1 ? 0 : m;
        e.query_episode = query.shape(0) == 1 ? 0 : e.q;
        e.labels_episode = labels.shape(0) == 1 ? 0 : m;
        e.offset = offset.data();
        e.inverse_length = inverse_length.data();
        e.square = square.data();
    }

    // (count, settings, q, ways) for the answer.
    Array<float> scores(py::ssize_t settings) {
        Array<float> made({static_cast<py::ssize_t>(episodes.count), settings, static_cast<py::ssize_t>(episodes.q),
                           static_cast<py::ssize_t>(episodes.ways)});
        episodes.scores = made.mutable_data();
        return made;
    }
};

// Blocks long enough to keep the threads busy, short enough that Ctrl-C is answered soon. `work`: of one episode.
template <class Params>
void run(void (*op)(const Params&, std::int64_t, std::int64_t, int), const Params& params, std::int64_t count,
         std::int64_t work, int threads) {
    require(threads >= 1, "threads must be at least 1");
    const std::int64_t block =
        std::clamp<std::int64_t>(100'000'000 / std::max<std::int64_t>(work, 1), 4, 4096) * threads;
    for (std::int64_t first = 0; first < count; first += block) {
        const std::int64_t last = std::min(first + block, count);
        {
            py::gil_scoped_release release;
            op(params, first, last, threads);
        }
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
}

template <class Params>
void run(void (*op)(const Params&, std::int64_t, std::int64_t, int), const Params& params, int threads) {
    const Episodes& e = params.episodes;
    run(op, params, e.count, static_cast<std::int64_t>(e.m) * (e.m + e.q) * e.ways, threads);
}

// Numbers from one row to the next of a matrix whose rows are contiguous, though there may be room between them.
std::int64_t row_stride(const py::array& matrix, const char* name) {
    const py::ssize_t size = matrix.itemsize(), row = matrix.strides(0);
    require((matrix.shape(1) == 1 || matrix.strides(1) == size) && row % size == 0 && row >= matrix.shape(1) * size,
            std::string(name) + " must have contiguous rows");
    return row / size;
}

fastxfer::Number number_of(const py::array& values) {
    const py::dtype type = values.dtype();
    const py::ssize_t size = type.itemsize();
    require(type.kind() == 'f' && type.byteorder() == '=' && (size == 2 || size == 4 || size == 8),
            "embeddings must be float16, float32 or float64");
    return size == 2 ? fastxfer::Number::float16 : size == 4 ? fastxfer::Number::float32 : fastxfer::Number::float64;
}

// Embeddings as they lie; float16 ones come with the mean that is to be taken off, others with an empty one.
fastxfer::Embeddings embeddings(const py::array& images, const Array<float>& mean) {
    require(images.ndim() == 2, "arrays must have two dimensions");
    const fastxfer::Number number = number_of(images);
    const bool stored = number == fastxfer::Number::float16;
    require(mean.ndim() == 1 && mean.size() == (stored ? images.shape(1) : 0), "mean goes with float16 embeddings");
    return {images.data(), row_stride(images, "images"), number, stored ? mean.data() : nullptr};
}

// (count, m, m + q) inner products of an episode's support with its support and with its queries.
template <class Real>
Array<Real> products_of(const py::array& images, const Array<std::int64_t>& support, const Array<std::int64_t>& query,
                        const Array<float>& mean, int threads) {
    require(images.ndim() == 2 && support.ndim() == 2 && query.ndim() == 2, "arrays must have two dimensions");
    require(support.shape(0) == query.shape(0), "support and query must be as many");
    in_range(support, images.shape(0), "support");
    in_range(query, images.shape(0), "query");
    const py::ssize_t count = support.shape(0), m = support.shape(1), q = query.shape(1), dim = images.shape(1);
    Array<Real> out({count, m, m + q});
    const fastxfer::ProductsParams params{count,        static_cast<int>(m),      static_cast<int>(q),
                                          dim,          embeddings(images, mean), support.data(),
                                          query.data(), out.mutable_data()};
    run(fastxfer::products_cpu, params, count, m * (m + q) * dim, threads);
    return out;
}

py::array products(const py::array& images, const Array<std::int64_t>& support, const Array<std::int64_t>& query,
                   const Array<float>& mean, int threads) {
    if (number_of(images) == fastxfer::Number::float64)
        return products_of<double>(images, support, query, mean, threads);
    return products_of<float>(images, support, query, mean, threads);
}

// (count, settings, q, ways) scores of queries by the weights that coefficients (count, settings, ways, m) make.
Array<float> scores_by_weights(const py::array& images, const Array<std::int64_t>& support,
                               const Array<std::int64_t>& query, const Array<double>& coefficients,
                               const Array<double>& bias, const Array<float>& mean, int threads) {
    require(images.ndim() == 2 && support.ndim() == 2 && query.ndim() == 2, "arrays must have two dimensions");
    require(coefficients.ndim() == 4 && bias.ndim() == 3, "coefficients must have four dimensions, bias three");
    const py::ssize_t count = support.shape(0), m = support.shape(1), q = query.shape(1);
    const py::ssize_t settings = bias.shape(1), ways = bias.shape(2);
    require(query.shape(0) == count && bias.shape(0) == count && coefficients.shape(0) == count &&
                coefficients.shape(1) == settings && coefficients.shape(2) == ways && coefficients.shape(3) == m,
            "episodes must match");
    in_range(support, images.shape(0), "support");
    in_range(query, images.shape(0), "query");
    Array<float> scores({count, settings, q, ways});
    const fastxfer::WeightsParams params{count,
                                         static_cast<int>(settings * ways),
                                         static_cast<int>(m),
                                         static_cast<int>(q),
                                         images.shape(1),
                                         embeddings(images, mean),
                                         support.data(),
                                         query.data(),
                                         coefficients.data(),
                                         bias.data(),
                                         static_cast<int>(ways),
                                         scores.mutable_data()};
    run(fastxfer::weights_cpu, params, count, settings * ways * (m + q) * images.shape(1), threads);
    return scores;
}

// few · images: (c, n) of weights (c, dim) with transposed images (n, dim), or (c, dim) of residuals (c, n) with
// images.
template <class Real>
Array<Real> skinny(const py::array_t<Real>& images, const py::array_t<Real>& few, bool transposed) {
    require(images.ndim() == 2 && few.ndim() == 2, "arrays must have two dimensions");
    const py::ssize_t n = images.shape(0), dim = images.shape(1), c = few.shape(0);
    require(few.shape(1) == (transposed ? dim : n), "few must match images");
    Array<Real> out({c, transposed ? n : dim});
    const fastxfer::SkinnyParams params{n,
                                        dim,
                                        static_cast<int>(c),
                                        images.data(),
                                        row_stride(images, "images"),
                                        std::is_same_v<Real, double>,
                                        few.data(),
                                        row_stride(few, "few"),
                                        out.mutable_data(),
                                        transposed ? n : dim};
    py::gil_scoped_release release;
    (transposed ? fastxfer::skinny_logits_cpu : fastxfer::skinny_gradient_cpu)(params);
    return out;
}

// Column sums (dim), and for each row a number that equal rows share and whether it is finite.
py::tuple examine(const py::array& images, int threads) {
    require(images.ndim() == 2 && (images.flags() & py::array::c_style),
            "images must be contiguous, in two dimensions");
    const py::ssize_t n = images.shape(0), dim = images.shape(1);
    // So many blocks whatever the threads: sums are added up in the same order.
    const py::ssize_t block = std::max<py::ssize_t>(1, (n + 63) / 64), blocks = (n + block - 1) / block;
    std::vector<double> sums(static_cast<std::size_t>(blocks * dim));
    Array<double> sum(dim);
    Array<std::uint64_t> digest(n);
    Array<bool> finite(n);
    const fastxfer::ExamineParams params{n,     dim,         images.data(),         number_of(images),
                                         block, sums.data(), digest.mutable_data(), finite.mutable_data()};
    run(fastxfer::examine_cpu, params, blocks, block * dim, threads);
    double* to = sum.mutable_data();
    for (py::ssize_t k = 0; k < dim; ++k) {
        to[k] = 0;
        for (py::ssize_t b = 0; b < blocks; ++b) to[k] += sums[static_cast<std::size_t>(b * dim + k)];
    }
    return py::make_tuple(sum, digest, finite);
}

// images[order] - mean into `out`, unless it is None; square, offset and inverse length of each.
py::tuple centre(const py::array& images, const Array<std::int64_t>& order, const Array<double>& mean,
                 std::optional<py::array> out, int threads) {
    require(images.ndim() == 2 && (images.flags() & py::array::c_style),
            "images must be contiguous, in two dimensions");
    require(order.ndim() == 1 && mean.ndim() == 1, "wrong dimensions");
    const py::ssize_t n = order.size(), dim = images.shape(1);
    require(mean.size() == dim, "shapes must match images");
    if (out) {
        require(out->ndim() == 2 && out->shape(0) == n && out->shape(1) == dim, "shapes must match images");
        require(out->writeable() && number_of(*out) != fastxfer::Number::float16,
                "out must be float32 or float64 and writable");
    }
    in_range(order, images.shape(0), "order");
    double mean_square = 0;
    for (py::ssize_t k = 0; k < dim; ++k) mean_square += mean.data()[k] * mean.data()[k];
    Array<double> square(n), offset(n), inverse_length(n);
    const fastxfer::CentreParams params{n,
                                        dim,
                                        images.data(),
                                        number_of(images),
                                        order.data(),
                                        mean.data(),
                                        mean_square,
                                        out ? out->mutable_data() : nullptr,
                                        out ? row_stride(*out, "out") : 0,
                                        out && number_of(*out) == fastxfer::Number::float64,
                                        square.mutable_data(),
                                        offset.mutable_data(),
                                        inverse_length.mutable_data()};
    run(fastxfer::centre_cpu, params, n, dim, threads);
    return py::make_tuple(square, offset, inverse_length);
}

void positive(const Array<double>& values, const char* name) {
    require(values.ndim() == 1, std::string(name) + " must have one dimension");
    for (py::ssize_t i = 0; i < values.size(); ++i) require(values.at(i) > 0, std::string(name) + " must be positive");
}

py::tuple logistic(const py::array& gram, const Array<std::int64_t>& support, const Array<std::int64_t>& query,
                   const Array<std::int32_t>& labels, const Array<double>& offset, const Array<double>& inverse_length,
                   const Array<double>& square, std::int64_t count, int ways, const Array<double>& l2, double tol,
                   int max_iter, const Array<double>& class_weight, bool balanced, bool with_coefficients,
                   int threads) {
    Batch batch(gram, support, query, labels, offset, inverse_length, square, count, ways);
    positive(l2, "l2");
    require(l2.size() >= 1, "l2 is empty");
    positive(class_weight, "class_weight");
    require(class_weight.size() == 0 || (class_weight.size() == ways && !balanced),
            "class_weight must be empty, or one number a class and not balanced too");
    const int n_l2 = static_cast<int>(l2.size());
    // Solved from the largest to the smallest, each from where the last ended.
    std::vector<int> place(n_l2);
    for (int i = 0; i < n_l2; ++i) place[i] = i;
    std::stable_sort(place.begin(), place.end(), [&](int a, int b) { return l2.at(a) > l2.at(b); });
    std::vector<double> sorted(n_l2);
    for (int i = 0; i < n_l2; ++i) sorted[i] = l2.at(place[i]);

    Array<float> scores = batch.scores(n_l2);
    const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(count), n_l2};
    Array<double> objective(shape);
    Array<std::int32_t> iterations(shape);
    Array<bool> converged(shape), doubtful(static_cast<py::ssize_t>(count));
    const py::ssize_t answers = with_coefficients ? count : 0;
    Array<double> coefficients({answers, py::ssize_t{n_l2}, py::ssize_t{ways}, py::ssize_t{batch.episodes.m}});
    Array<double> bias({answers, py::ssize_t{n_l2}, py::ssize_t{ways}});
    const fastxfer::LogisticParams params{batch.episodes,
                                          n_l2,
                                          sorted.data(),
                                          place.data(),
                                          tol,
                                          max_iter,
                                          class_weight.size() ? class_weight.data() : nullptr,
                                          balanced,
                                          objective.mutable_data(),
                                          iterations.mutable_data(),
                                          converged.mutable_data(),
                                          doubtful.mutable_data(),
                                          with_coefficients ? coefficients.mutable_data() : nullptr,
                                          with_coefficients ? bias.mutable_data() : nullptr};
    run(fastxfer::logistic_cpu, params, threads);
    return py::make_tuple(scores, objective, iterations, converged, doubtful, coefficients, bias);
}

py::tuple ridge(const py::array& gram, const Array<std::int64_t>& support, const Array<std::int64_t>& query,
                const Array<std::int32_t>& labels, const Array<double>& offset, const Array<double>& inverse_length,
                const Array<double>& square, std::int64_t count, int ways, const Array<double>& l2, int threads) {
    Batch batch(gram, support, query, labels, offset, inverse_length, square, count, ways);
    positive(l2, "l2");
    require(l2.size() >= 1, "l2 is empty");
    Array<float> scores = batch.scores(l2.size());
    Array<bool> doubtful(static_cast<py::ssize_t>(count));
    const fastxfer::RidgeParams params{batch.episodes, static_cast<int>(l2.size()), l2.data(), doubtful.mutable_data()};
    run(fastxfer::ridge_cpu, params, threads);
    return py::make_tuple(scores, doubtful);
}

Array<float> prototype(const py::array& gram, const Array<std::int64_t>& support, const Array<std::int64_t>& query,
                       const Array<std::int32_t>& labels, const Array<double>& offset,
                       const Array<double>& inverse_length, const Array<double>& square, std::int64_t count, int ways,
                       bool cosine, int threads) {
    Batch batch(gram, support, query, labels, offset, inverse_length, square, count, ways);
    Array<float> scores = batch.scores(1);
    run(fastxfer::prototype_cpu, fastxfer::PrototypeParams{batch.episodes, cosine}, threads);
    return scores;
}

Array<float> knn(const py::array& gram, const Array<std::int64_t>& support, const Array<std::int64_t>& query,
                 const Array<std::int32_t>& labels, const Array<double>& offset, const Array<double>& inverse_length,
                 const Array<double>& square, std::int64_t count, int ways, const Array<std::int32_t>& k,
                 double temperature, bool by_distance, int threads) {
    Batch batch(gram, support, query, labels, offset, inverse_length, square, count, ways);
    require(k.ndim() == 1 && k.size() >= 1, "k must be a list");
    for (py::ssize_t i = 0; i < k.size(); ++i) {
        require(k.at(i) >= 1 && k.at(i) <= batch.episodes.m && (i == 0 || k.at(i) >= k.at(i - 1)),
                "k must ascend within 1 ... m");
    }
    require(temperature >= 0, "temperature must not be negative");
    const std::vector<int> ks(k.data(), k.data() + k.size());
    Array<float> scores = batch.scores(k.size());
    const fastxfer::KnnParams params{batch.episodes, static_cast<int>(ks.size()), ks.data(), ks.back(), temperature,
                                     by_distance};
    run(fastxfer::knn_cpu, params, threads);
    return scores;
}

// The ops on memory that the caller vouches for, addresses as integers: that of a device, or, so that the callers can
// be tested without one, this process's own.
template <class T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);  // NOLINT: this is what an address is for
}

Episodes episodes_at(std::int64_t count, int m, int q, int ways, std::uintptr_t gram, bool gram_is_double,
                     std::int64_t gram_row, std::int64_t gram_episode, std::uintptr_t support,
                     std::int64_t support_episode, std::uintptr_t query, std::int64_t query_episode,
                     std::uintptr_t labels, std::int64_t labels_episode, std::uintptr_t offset,
                     std::uintptr_t inverse_length, std::uintptr_t square, std::int64_t image_episode,
                     std::uintptr_t scores) {
    return {count,
            m,
            q,
            ways,
            at<const void>(gram),
            gram_is_double,
            gram_row,
            gram_episode,
            at<const std::int64_t>(support),
            support_episode,
            at<const std::int64_t>(query),
            query_episode,
            at<const std::int32_t>(labels),
            labels_episode,
            at<const double>(offset),
            at<const double>(inverse_length),
            at<const double>(square),
            image_episode,
            at<float>(scores)};
}

fastxfer::LogisticParams logistic_at(const Episodes& episodes, int n_l2, std::uintptr_t l2, std::uintptr_t place,
                                     double tol, int max_iter, std::uintptr_t class_weight, bool balanced,
                                     std::uintptr_t objective, std::uintptr_t iterations, std::uintptr_t converged,
                                     std::uintptr_t doubtful) {
    return {episodes,
            n_l2,
            at<const double>(l2),
            at<const int>(place),
            tol,
            max_iter,
            at<const double>(class_weight),
            balanced,
            at<double>(objective),
            at<std::int32_t>(iterations),
            at<bool>(converged),
            at<bool>(doubtful),
            nullptr,
            nullptr};
}

fastxfer::RidgeParams ridge_at(const Episodes& episodes, int n_l2, std::uintptr_t l2, std::uintptr_t doubtful) {
    return {episodes, n_l2, at<const double>(l2), at<bool>(doubtful)};
}

fastxfer::KnnParams knn_at(const Episodes& episodes, int n_k, std::uintptr_t k, int k_max, double temperature,
                           bool by_distance) {
    return {episodes, n_k, at<const int>(k), k_max, temperature, by_distance};
}

fastxfer::NeighboursParams neighbours_at(std::int64_t n, std::int64_t q, std::int64_t dim, std::uintptr_t images,
                                         std::uintptr_t query, int k, std::int64_t shares, std::uintptr_t products,
                                         std::uintptr_t rows) {
    require(n >= 1 && q >= 0 && dim >= 1 && k >= 1 && shares >= 1 && shares <= n, "sizes must be positive");
    return {n,
            q,
            dim,
            at<const float>(images),
            at<const float>(query),
            k,
            shares,
            at<float>(products),
            at<std::int64_t>(rows)};
}

// Params of one op, with run(): on this process's memory.
template <class Params, class Make>
void params_at(py::module_& module, const char* name, Make make,
               void (*cpu)(const Params&, std::int64_t, std::int64_t, int)) {
    py::class_<Params>(module, name).def(py::init(make)).def("run", [cpu](const Params& params, int threads) {
        run(cpu, params, threads);
    });
}

#ifdef FX_CUDA
void succeed(const char* error) {
    if (error != nullptr) throw std::runtime_error(std::string("CUDA: ") + error);
}

void define_cuda(py::module_& module) {
    using namespace fastxfer;
    module.def("cuda_devices", &cuda_devices);
    module.def("cuda_bytes", &logistic_cuda_bytes);
    module.def("cuda_bytes", [](const RidgeParams& p, bool) { return ridge_cuda_bytes(p); });
    module.def("cuda_bytes", [](const PrototypeParams& p, bool) { return prototype_cuda_bytes(p); });
    module.def("cuda_bytes", [](const KnnParams& p, bool) { return knn_cuda_bytes(p); });
    module.def("cuda_bytes", [](const NeighboursParams& p, bool) { return neighbours_cuda_bytes(p); });
    module.def("cuda_run", [](const NeighboursParams& p, bool, std::uintptr_t memory, std::size_t bytes, int blocks,
                              std::uintptr_t stream) {
        succeed(neighbours_cuda(p, at<void>(memory), bytes, blocks, at<void>(stream)));
    });
    module.def("cuda_run", [](const LogisticParams& p, bool wide, std::uintptr_t memory, std::size_t bytes, int blocks,
                              std::uintptr_t stream) {
        succeed(logistic_cuda(p, wide, at<void>(memory), bytes, blocks, at<void>(stream)));
    });
    module.def("cuda_run", [](const RidgeParams& p, bool, std::uintptr_t memory, std::size_t bytes, int blocks,
                              std::uintptr_t stream) {
        succeed(ridge_cuda(p, at<void>(memory), bytes, blocks, at<void>(stream)));
    });
    module.def("cuda_run", [](const PrototypeParams& p, bool, std::uintptr_t memory, std::size_t bytes, int blocks,
                              std::uintptr_t stream) {
        succeed(prototype_cuda(p, at<void>(memory), bytes, blocks, at<void>(stream)));
    });
    module.def("cuda_run",
               [](const KnnParams& p, bool, std::uintptr_t memory, std::size_t bytes, int blocks,
                  std::uintptr_t stream) { succeed(knn_cuda(p, at<void>(memory), bytes, blocks, at<void>(stream))); });
}
#endif

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "fastxfer's compiled ops; fastxfer.ops is the door to them";
    module.def("instruction_set", [] { return fastxfer::cpu_kernels().name; });
    const auto gram = py::arg("gram").noconvert();
    const auto support = py::arg("support").noconvert(), query = py::arg("query").noconvert();
    const auto labels = py::arg("labels").noconvert();
#define FX_EPISODES                                                                                     \
    gram, support, query, labels, py::arg("offset").noconvert(), py::arg("inverse_length").noconvert(), \
        py::arg("square").noconvert(), py::arg("count"), py::arg("ways")
    module.def("logistic", &logistic, FX_EPISODES, py::arg("l2").noconvert(), py::arg("tol"), py::arg("max_iter"),
               py::arg("class_weight").noconvert(), py::arg("balanced"), py::arg("with_coefficients"),
               py::arg("threads"));
    module.def("ridge", &ridge, FX_EPISODES, py::arg("l2").noconvert(), py::arg("threads"));
    module.def("prototype", &prototype, FX_EPISODES, py::arg("cosine"), py::arg("threads"));
    module.def("knn", &knn, FX_EPISODES, py::arg("k").noconvert(), py::arg("temperature"), py::arg("by_distance"),
               py::arg("threads"));
#undef FX_EPISODES
    const auto images = py::arg("images").noconvert();
    const auto mean_off = py::arg("mean").noconvert();
    module.def("products", &products, images, support, query, mean_off, py::arg("threads"));

    const auto coefficients = py::arg("coefficients").noconvert(), bias = py::arg("bias").noconvert();
    module.def("scores_by_weights", &scores_by_weights, images, support, query, coefficients, bias, mean_off,
               py::arg("threads"));
    module.def("skinny", &skinny<float>, images, py::arg("few").noconvert(), py::arg("transposed"));
    module.def("skinny", &skinny<double>, images, py::arg("few").noconvert(), py::arg("transposed"));
    module.def("examine", &examine, images, py::arg("threads"));
    const auto order = py::arg("order").noconvert(), mean = py::arg("mean").noconvert();
    module.def("centre", &centre, images, order, mean, py::arg("out").none(true), py::arg("threads"));

    py::class_<Episodes>(module, "EpisodesAt").def(py::init(&episodes_at));
    params_at<fastxfer::LogisticParams>(module, "LogisticAt", &logistic_at, fastxfer::logistic_cpu);
    params_at<fastxfer::RidgeParams>(module, "RidgeAt", &ridge_at, fastxfer::ridge_cpu);
    params_at<fastxfer::PrototypeParams>(
        module, "PrototypeAt",
        [](const Episodes& episodes, bool cosine) { return fastxfer::PrototypeParams{episodes, cosine}; },
        fastxfer::prototype_cpu);
    params_at<fastxfer::KnnParams>(module, "KnnAt", &knn_at, fastxfer::knn_cpu);
    py::class_<fastxfer::NeighboursParams>(module, "NeighboursAt")
        .def(py::init(&neighbours_at))
        .def_property_readonly_static("tile", [](const py::object&) { return fastxfer::NeighboursParams::tile; })
        .def_property_readonly("items", &fastxfer::NeighboursParams::items)
        .def("run", [](const fastxfer::NeighboursParams& params, int threads) {
            const std::int64_t of_an_item = fastxfer::NeighboursParams::tile * params.n / params.shares * params.dim;
            run(fastxfer::neighbours_cpu, params, params.items(), of_an_item, threads);
        });
#ifdef FX_CUDA
    module.attr("has_cuda") = true;
    define_cuda(module);
#else
    module.attr("has_cuda") = false;
#endif
}
