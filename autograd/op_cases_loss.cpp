#include "autograd/op_cases.h"
#include "autograd/ops_loss.h"
#include "autograd/ops_pointwise.h"

namespace eigentrace {
namespace {

using Values = std::vector<Var>;

/// About half of the rows labelled, then one of padding.
Labels some_labels(Rng& rng, int64_t rows, int64_t classes, Device device) {
  std::vector<int32_t> where, labels;
  std::vector<float> weights;
  for (int64_t r = 0; r < rows; ++r) {
    if (r > 0 && rng.below(2) == 0) continue;
    where.push_back(static_cast<int32_t>(r)), weights.push_back(1);
    labels.push_back(static_cast<int32_t>(rng.below(static_cast<uint32_t>(classes))));
  }
  const double count = static_cast<double>(where.size());
  where.push_back(0), labels.push_back(0), weights.push_back(0);
  const int64_t M = static_cast<int64_t>(where.size());
  return {Tensor::from(where, {M}, device), Tensor::from(labels, {M}, device),
          Tensor::from(weights, {M}, device), Tensor::from(std::vector<double>{count}, {1}, device)};
}

/// before, after: all rows are used as well.
OpCase labelled_rows_case(const char* what, bool before, bool after) {
  return {std::string("labelled_rows: half of the rows") + what, Op::labelled_rows,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t steps = odd_size(rng), width = odd_size(rng, 7);
            const Labels labels = some_labels(rng, 3 * steps, 5, device);
            return OpInstance{[=](Tape&, const Values& x) {
                                if (!before && !after) return Values{labelled_rows(x[0], labels)};
                                const Var z = unary(Unary::sigmoid, x[0]);
                                Values out;
                                if (before) out.push_back(unary(Unary::gelu, z));
                                out.push_back(labelled_rows(z, labels));
                                if (after) out.push_back(unary(Unary::gelu, z));
                                return out;
                              },
                              {normal_tensor(rng, {3, steps, 2, width}, device)},
                              {"x"}};
          },
          1e-6};
}

/// Label m at row m.
OpCase head_of_gathered_case() {
  return {
      "vocabulary_head: of gathered rows", Op::vocabulary_head,
      [](uint64_t seed, Device device) {
        Rng rng(seed);
        const int64_t classes = odd_size(rng), width = odd_size(rng, 7);
        Labels labels = some_labels(rng, odd_size(rng), classes, device);
        labels.rows = {};
        const int64_t rows = labels.labels.numel();
        return OpInstance{
            [=](Tape&, const Values& x) { return Values{vocabulary_head(x[0], x[1], Var(), labels).value}; },
            {normal_tensor(rng, {1, rows, width}, device), normal_tensor(rng, {classes, width}, device)},
            {"x", "weight"}};
      },
      2e-6};
}

OpCase cross_entropy_case() {
  return {"cross_entropy: half of the rows labelled", Op::cross_entropy,
          [](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t rows = odd_size(rng), classes = odd_size(rng);
            const Labels labels = some_labels(rng, 2 * rows, classes, device);
            return OpInstance{
                [=](Tape&, const Values& x) { return Values{cross_entropy(x[0], labels).value}; },
                {normal_tensor(rng, {2, rows, classes}, device)},
                {"logits"}};
          },
          2e-6};  // a mean: gradients of 1/count under the rounding of a loss of about 5
}

OpCase vocabulary_head_case(const char* what, bool with_bias) {
  return {std::string("vocabulary_head: ") + what, Op::vocabulary_head,
          [=](uint64_t seed, Device device) {
            Rng rng(seed);
            const int64_t rows = odd_size(rng), classes = odd_size(rng), width = odd_size(rng, 7);
            const Labels labels = some_labels(rng, rows, classes, device);
            OpInstance instance{
                [=](Tape&, const Values& x) {
                  return Values{vocabulary_head(x[0], x[1], with_bias ? x[2] : Var(), labels).value};
                },
                {normal_tensor(rng, {rows, width}, device), normal_tensor(rng, {classes, width}, device)},
                {"x", "weight"}};
            if (with_bias) {
              instance.inputs.push_back(normal_tensor(rng, {classes}, device));
              instance.names.push_back("bias");
            }
            return instance;
          },
          2e-6};
}

OpCase log_softmax_case() {
  return {"log_softmax: last axis", Op::log_softmax,
          [](uint64_t seed, Device device) {
            Rng rng(seed);
            return OpInstance{[](Tape&, const Values& x) { return Values{log_softmax(x[0])}; },
                              {normal_tensor(rng, {odd_size(rng, 7), odd_size(rng), odd_size(rng)}, device)},
                              {"x"}};
          },
          1e-6};
}

}  // namespace

std::vector<OpCase> op_cases_loss() {
  return {labelled_rows_case(", with heads", false, false),
          labelled_rows_case(", all of them before", true, false),
          labelled_rows_case(", all of them after", false, true),
          labelled_rows_case(", all of them before and after", true, true),
          cross_entropy_case(),
          vocabulary_head_case("with bias", true),
          vocabulary_head_case("without bias", false),
          head_of_gathered_case(),
          log_softmax_case()};
}

}  // namespace eigentrace
