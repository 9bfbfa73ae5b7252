#pragma once
// Tables for the terminal.
#include <string>
#include <vector>

namespace eigentrace {

/// Rows under a heading, columns as wide as their widest cell (counted in characters, not bytes). The first
/// `left` columns are flush left, the others right.
class TextTable {
 public:
  explicit TextTable(std::vector<std::string> heading, size_t left = 1)
      : left_(left), rows_{std::move(heading)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  bool empty() const { return rows_.size() == 1; }
  std::string text() const;

 private:
  size_t left_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace eigentrace
