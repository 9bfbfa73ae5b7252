#pragma once
// Retrieval (ACL Anthology Network, Radev et al. 2009; Long Range Arena): does one of two papers cite the
// other? Both texts are read by the same encoder, character by character: two documents an example.
//
//   row e          A   n e w   p a r s e r …  <eos>
//   row B/2 + e    P a r s i n g   t r e e s  <eos>
//   label of e     1
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tasks/task.h"

namespace eigentrace {

struct RetrievalConfig {
  static constexpr const char* kName = "aan";
  static constexpr const char* kAbout = "retrieval: are two papers related? two documents by characters";
  std::string data_dir = "data";
  bool fixed_size = false;
  int64_t l_max = 4096;
};

template <class V>
void visit_fields(V& v, RetrievalConfig& c) {
  v("data_dir", c.data_dir,
    "folder of new_aan_pairs.train.tsv, new_aan_pairs.eval.tsv, new_aan_pairs.test.tsv");
  v("fixed_size", c.fixed_size, "pad to l_max always, else to the longest of the batch");
  v("l_max", c.l_max, "longest document, <eos> included; longer ones are cut");
}

/// Errors: missing files, wrong columns or labels, a text that is no UTF-8.
std::unique_ptr<Task> make_task(const RetrievalConfig& config);

struct RetrievalRow {
  int32_t label = 0;
  std::string_view text[2];
};
/// Rows of label, id, id, text, text between tabs, without header; views into `text`. Errors name `file` and
/// line.
std::vector<RetrievalRow> parse_retrieval_tsv(std::string_view text, const std::string& file);

}  // namespace eigentrace
