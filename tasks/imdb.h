#pragma once
// IMDB reviews (Maas et al. 2011) character by character: positive or negative.
//
//   input   T h i s   w a s   f u n . <eos>
//   label   1
#include <memory>
#include <string>

#include "tasks/task.h"

namespace eigentrace {

struct ImdbConfig {
  static constexpr const char* kName = "imdb";
  static constexpr const char* kAbout = "film reviews by characters, negative 0 or positive 1";
  std::string data_dir = "data";
  bool fixed_size = false;
  int64_t l_max = 4096;
  int64_t min_freq = 15;
};

template <class V>
void visit_fields(V& v, ImdbConfig& c) {
  v("data_dir", c.data_dir,
    "folder of aclImdb, or of aclImdb_v1.tar.gz (or aclImdb.tar.xz), which is read as it is");
  v("fixed_size", c.fixed_size, "pad to l_max always, else to the longest of the batch");
  v("l_max", c.l_max, "longest sequence, <eos> included; longer reviews are cut");
  v("min_freq", c.min_freq, "occurrences in the training reviews a character needs for an id of its own");
}

/// Errors: missing or empty folders, a review that is no UTF-8, a damaged archive.
std::unique_ptr<Task> make_task(const ImdbConfig& config);

}  // namespace eigentrace
