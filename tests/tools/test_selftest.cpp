#include <doctest/doctest.h>

#include <string>

#include "tests/tensor/io_testing.h"
#include "tests/tools/child.h"

using namespace eigentrace;

TEST_CASE("selftest: words choose the cases, and a word that no case has is a usage error") {
  const TestFolder temporary;
  const std::string log = temporary / "log";
  std::string text;
  CHECK(run_caught({"selftest", "--threads", "1", "glu: rows"}, log, text) == 0);
  CHECK(text.ends_with("1 case, 0 failed\n"));
  CHECK(run_caught({"selftest", "no such op"}, log, text) == 2);
  CHECK(text.find("no case's name contains no such op") != std::string::npos);
}
