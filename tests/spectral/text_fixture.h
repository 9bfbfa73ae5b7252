#pragma once
// Fixtures as text: "case NAME" lines, each followed by lines "array count values…".
#include <doctest/doctest.h>

#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

struct TextCase {
  std::string name;
  std::map<std::string, std::vector<double>> arrays;
  const std::vector<double>& operator[](const std::string& array) const {
    REQUIRE_MESSAGE(arrays.count(array) == 1, name << " has no array " << array);
    return arrays.at(array);
  }
};

inline std::vector<TextCase> read_text_cases(const std::string& path) {
  std::ifstream in(path);
  REQUIRE(in);
  std::vector<TextCase> cases;
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string array;
    words >> array;
    if (array == "case") {
      cases.push_back({line.substr(5), {}});
      continue;
    }
    size_t count = 0;
    words >> count;
    std::vector<double> values;
    for (std::string word; words >> word;) values.push_back(std::stod(word));
    REQUIRE(values.size() == count);
    cases.back().arrays[array] = values;
  }
  return cases;
}
